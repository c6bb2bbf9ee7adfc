"""electra-flax verify, detect and fill, against transformers' own answers about the same folders."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from run_tools import refusal
from safetensors.numpy import load_file, save_file
from weights_tools import export, export_both, random_weights

from electra_flax.commands.cli import main

SENTENCE = "한국어를 공유합니다. The lazy dog."
MASKED = "짧은 [MASK]장입니다. The [MASK] fox."


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    root = export_both(tmp_path_factory.mktemp("there"))
    export(random_weights(root, seed=1), root / "other", is_compared=False)
    export(random_weights(root, seed=1, model={"hidden_size": 64}), root / "wide", is_compared=False)
    return root


def printed(capsys, *arguments):
    """Exit code and JSON of a command."""
    capsys.readouterr()
    with jax.numpy_rank_promotion("allow"):  # transformers' modules rely on it
        code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("against", ["export", "original/model.ckpt-7"])
def test_the_same_model_is_within_the_tolerance(there, capsys, against):
    source = f"tf1:{there}/{against}" if "ckpt" in against else str(there / against)
    code, found = printed(capsys, "verify", "--model", str(there / "export"), "--against", source)
    assert code == 0 and found["within"]
    for part, layers in (("discriminator", 2), ("generator", 1)):
        assert found[part]["--against"] == {"hidden": [0.0] * (1 + layers), "logits": 0.0}
        assert len(found[part]["flax"]["hidden"]) == 1 + layers and 0 < found[part]["flax"]["logits"] < 1e-4


def test_another_model_or_a_damaged_one_is_beyond_it(there, tmp_path, capsys):
    code, found = printed(capsys, "verify", "--model", str(there / "export"), "--against", str(there / "other"))
    assert code == 1 and not found["within"] and found["discriminator"]["--against"]["logits"] > 0.01
    assert found["discriminator"]["flax"]["logits"] < 1e-4  # in itself it is sound

    # Flax reads the msgpack, we read the safetensors: from its second layer on they differ.
    shutil.copytree(there / "export/discriminator", tmp_path / "damaged")
    path = tmp_path / "damaged/model.safetensors"
    tensors = load_file(path)
    tensors["electra.encoder.layer.1.output.dense.bias"][0] += 5
    save_file(tensors, path, {"format": "pt"})
    arguments = ["verify", "--model", str(tmp_path / "damaged")]
    code, found = printed(capsys, *arguments)
    embeddings, first, second = found["discriminator"]["flax"]["hidden"]
    assert code == 1 and embeddings < 1e-4 and first < 1e-4 < 0.1 < second
    with jax.numpy_rank_promotion("allow"):
        assert main([*arguments, "--tolerance", "100"]) == 0
    assert "all within the tolerance of 100" in capsys.readouterr().out


def test_what_cannot_be_verified_is_one_line(there, capsys):
    model = ["verify", "--model", str(there / "export")]
    for arguments, expected in (
        ([*model, "--against", str(there / "wide")], "has other sizes: give two forms of the same model"),
        ([*model, "--against", "hf:nowhere"], "no such folder, nor OWNER/NAME"),
        (["verify", "--model", str(there)], "neither model.safetensors nor flax_model.msgpack"),
        (
            ["verify", "--model", str(there / "export/generator"), "--against", str(there / "export/discriminator")],
            "has no generator to compare with",
        ),
    ):
        with jax.numpy_rank_promotion("allow"):
            assert expected in refusal(capsys, arguments)


@pytest.mark.parametrize("place", ["export", "export/discriminator"])
def test_detect_says_what_transformers_says(there, capsys, place):
    torch = pytest.importorskip("torch", reason="NOT CHECKED: PyTorch is not installed")
    import transformers

    folder = there / "export/discriminator"
    tokenizer = transformers.ElectraTokenizerFast.from_pretrained(folder)
    inputs = tokenizer(SENTENCE, return_tensors="pt")
    model = transformers.ElectraForPreTraining.from_pretrained(folder).eval()
    expected = torch.sigmoid(model(**inputs).logits)[0].tolist()[1:-1]

    _, found = printed(capsys, "detect", "--model", str(there / place), SENTENCE, "짧은")
    assert [each["text"] for each in found] == [SENTENCE, "짧은"]
    pieces = found[0]["pieces"]
    assert [piece["token"] for piece in pieces] == tokenizer.tokenize(SENTENCE)
    np.testing.assert_allclose([piece["probability"] for piece in pieces], expected, atol=1e-4)
    for piece in pieces:
        assert piece["token"] in ("[UNK]", SENTENCE[piece["start"] : piece["end"]]) or piece["token"].startswith("##")
        assert len(SENTENCE[piece["start"] : piece["end"]]) >= 1


def test_fill_offers_words_alone(there, capsys):
    _, (found,) = printed(capsys, "fill", "--model", str(there / "export"), "--top", "10000", "가 [MASK]")
    tokens = (there / "export/generator/vocab.txt").read_text().splitlines()
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    words = {token for token in tokens if token not in special and not token.startswith("[unused")}
    assert {each["token"] for each in found["masks"][0]} == words


def test_fill_says_what_transformers_says(there, capsys):
    pytest.importorskip("torch", reason="NOT CHECKED: PyTorch is not installed")
    import transformers

    folder = there / "export/generator"
    model = transformers.ElectraForMaskedLM.from_pretrained(folder)
    tokenizer = transformers.ElectraTokenizerFast.from_pretrained(folder)
    expected = transformers.pipeline("fill-mask", model, tokenizer=tokenizer, top_k=len(tokenizer), device="cpu")(
        MASKED
    )
    no_words = {*tokenizer.all_special_tokens, *(f"[unused{number}]" for number in range(1000))}
    expected = [[each for each in mask if each["token_str"] not in no_words][:3] for mask in expected]

    _, (found,) = printed(capsys, "fill", "--model", str(there / "export"), "--top", "3", MASKED)
    assert len(found["masks"]) == 2
    for ours, theirs in zip(found["masks"], expected, strict=True):
        assert [each["token"] for each in ours] == [tokenizer.convert_ids_to_tokens(each["token"]) for each in theirs]
        probabilities = [each["score"] for each in theirs]
        np.testing.assert_allclose([each["probability"] for each in ours], probabilities, rtol=1e-3)


def test_sentences_marked_without_escapes_and_from_the_standard_input(there, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((f"{SENTENCE}\n\n짧은 문장\n").encode())))
    assert main(["detect", "--model", str(there / "export")]) == 0
    legend, first, second = capsys.readouterr().out.splitlines()
    assert "in brackets" in legend and "%)" in first  # with random weights about half of it is suspicious
    assert "\x1b" not in legend + first + second  # no terminal reads it
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((MASKED).encode())))
    assert main(["fill", "--model", str(there / "export")]) == 0
    sentence, *masks = capsys.readouterr().out.splitlines()
    assert sentence == MASKED and len(masks) == 2 and all(line.count("%") == 5 for line in masks)


def test_what_cannot_be_answered_is_one_line(there, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    model, generator = ["--model", str(there / "export")], ["--model", str(there / "export/generator")]
    for arguments, expected in (
        (["detect", *model], "no sentences: give them as arguments"),
        (["detect", *model, " "], "has no words"),
        (["detect", *model, "a " * 63], "65 pieces, more than the 64 positions"),
        (["detect", *generator, "a"], "a generator; expected a discriminator"),
        (["detect", "--model", "nowhere", "a"], "no such folder"),
        (["fill", *model, "a"], "has no [MASK]"),
    ):
        assert expected in refusal(capsys, arguments), expected
