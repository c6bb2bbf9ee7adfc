"""What `show` prints of found, missed and falsely accused tokens where there are no colours."""

import io

import numpy as np
from rich.console import Console

from electra_flax.reports.replaced import Detection, show


def test_each_outcome_has_a_sign_of_its_own_without_colours():
    out = io.StringIO()
    detection = Detection(
        ["[CLS]", "나", "##라", "수도", "이다"], ["[CLS]", "산", "##라", "강", "이다"],
        np.array([False, True, False, True, False]), np.array([0.0, 0.9, 0.1, 0.2, 0.8]),
    )  # fmt: skip
    show([detection], Console(file=out, width=200))
    legend, shown, total = out.getvalue().splitlines()
    assert legend.endswith("+found, !false alarm, -missed, the original in brackets")
    assert shown == "  [CLS] +산(나)라 -강(수도) !이다"
    assert total.startswith("found 1 of 2 replaced tokens")
