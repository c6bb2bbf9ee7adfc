"""Run by an environment with transformers: loads both models of an export into every head, and prints what each load
reports; their encoders' outputs go to a file.

usage: load_heads.py EXPORT_FOLDER INPUTS.npz OUTPUTS.npz FRAMEWORK...        (flax, torch, tensorflow)
"""

import json
import sys

import numpy as np
import transformers

HEADS = [
    "Model", "ForPreTraining", "ForCausalLM", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice",
    "ForTokenClassification", "ForQuestionAnswering",
]  # fmt: skip


def load_flax(cls, folder):
    from flax.traverse_util import flatten_dict

    _, params = cls.from_pretrained(folder, _do_init=False)  # what the file has, nothing filled in
    model = cls.from_pretrained(folder)
    missing = model.required_params - set(flatten_dict(params))
    return model, {".".join(name) for name in missing}, set()  # it does not say what it did not want


def load_torch(cls, folder):
    model, report = cls.from_pretrained(folder, output_loading_info=True)
    assert not report["mismatched_keys"] and not report.get("error_msgs")
    return model.eval(), set(report["missing_keys"]), set(report["unexpected_keys"])


def load_tensorflow(cls, folder):
    model, report = cls.from_pretrained(folder, from_pt=True, output_loading_info=True)
    assert not report["mismatched_keys"]
    return model, set(report["missing_keys"]), set(report["unexpected_keys"])


def apply(framework, model, arrays):
    if framework == "torch":
        import torch

        with torch.no_grad():
            return model(**{name: torch.tensor(array) for name, array in arrays.items()}, output_hidden_states=True)
    return model(**arrays, output_hidden_states=True)


def main(export, inputs_path, outputs_path, *frameworks):
    inputs = dict(np.load(inputs_path))
    outputs, reports = {}, {"version": transformers.__version__}
    for framework in frameworks:
        prefix = {"flax": "Flax", "torch": "", "tensorflow": "TF"}[framework]
        load = {"flax": load_flax, "torch": load_torch, "tensorflow": load_tensorflow}[framework]
        for part in ("discriminator", "generator"):
            for head in HEADS:
                cls = getattr(transformers, f"{prefix}Electra{head}", None)
                if cls is None:
                    continue
                model, missing, unexpected = load(cls, f"{export}/{part}")
                # Choices are one more dimension.
                arrays = {k: v[None] for k, v in inputs.items()} if head == "ForMultipleChoice" else inputs
                found = apply(framework, model, arrays)
                name = f"{framework}/{part}/{head}"
                outputs[f"{name}/hidden"] = np.asarray(found.hidden_states[-1])
                if "logits" in found:
                    outputs[f"{name}/logits"] = np.asarray(found.logits)
                reports[name] = {"missing": sorted(missing), "unexpected": sorted(unexpected)}
    np.savez(outputs_path, **outputs)
    print(json.dumps(reports))


if __name__ == "__main__":
    main(*sys.argv[1:])
