"""Run by an environment with transformers 5 and torch: loads an export, prints loading reports and logits.

usage: load_with_transformers_5.py EXPORT_FOLDER INPUTS.npz OUTPUTS.npz
"""

import json
import sys

import numpy as np
import torch
import transformers

export, inputs_path, outputs_path = sys.argv[1:]
inputs = {name: torch.tensor(array) for name, array in np.load(inputs_path).items()}
outputs, reports = {}, {"version": transformers.__version__}
for part, name in (("discriminator", "ElectraForPreTraining"), ("generator", "ElectraForMaskedLM")):
    cls = getattr(transformers, name)
    model, report = cls.from_pretrained(f"{export}/{part}", output_loading_info=True)
    outputs[part] = model.eval()(**inputs).logits.detach().numpy()
    reports[part] = {key: sorted(map(str, value)) for key, value in report.items()}
np.savez(outputs_path, **outputs)
print(json.dumps(reports))
