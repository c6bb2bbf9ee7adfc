"""Models go to a hub and come from it, through huggingface_hub, by real processes against a stand-in on loopback."""

import json

import local_hub
import pytest
from run_tools import start
from weights_tools import export, random_weights

pytestmark = pytest.mark.slow
MODEL = {
    "README.md", "config.json", "flax_model.msgpack", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.txt",
}  # fmt: skip


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    root = tmp_path_factory.mktemp("there")
    export(random_weights(root), root / "export")
    return root


@pytest.fixture
def hub():
    with local_hub.running() as hub:
        yield hub


def ask(hub, home, *arguments, **environment):
    """Exit code, output and what it says is wrong; a bar of an upload may end after that."""
    known = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home / "home"), "HF_TOKEN": local_hub.TOKEN}
    allow = 'jax.config.update("jax_numpy_rank_promotion", "allow")'  # transformers' modules rely on it
    process = start(list(map(str, arguments)), allow, **(known | environment))
    out, error = process.communicate(timeout=240)
    assert "Traceback" not in error, error
    return process.returncode, out, "".join(line for line in error.splitlines() if line.startswith("electra-flax:"))


def test_an_export_goes_to_the_hub_and_comes_back(there, tmp_path, hub):
    out = tmp_path / "out"
    source = ["export", "--from", f"hf:{there}/export"]
    code, printed, error = ask(hub, tmp_path, *source, "--out", out, "--push", "owner/tiny", "--private")
    assert code == 0, error
    repositories = [f"owner/tiny-{part}" for part in ("discriminator", "generator")]
    assert hub.commits == repositories and hub.private == set(repositories)
    for part, repository in zip(("discriminator", "generator"), repositories, strict=True):
        files = hub.files[repository]
        assert files.keys() == MODEL
        assert all(content == (out / part / path).read_bytes() for path, content in files.items())
        assert f'from_pretrained("{repository}")' in files["README.md"].decode()
        assert f"{hub.address}/{repository}" in printed

    names = ",".join(repositories)
    code, _, error = ask(hub, tmp_path, "export", "--from", f"hf:{names}", "--out", tmp_path / "back")
    assert code == 0, error
    for path in out.rglob("model.safetensors"):
        assert path.read_bytes() == (tmp_path / "back" / path.relative_to(out)).read_bytes()
    code, printed, _ = ask(hub, tmp_path, "detect", "--model", repositories[0], "--json", "짧은 문장")
    assert code == 0 and len(json.loads(printed)[0]["pieces"]) == 4


def test_what_the_hub_refuses_is_one_line_and_the_export_stays(there, tmp_path, hub):
    out = tmp_path / "out"
    push = ["export", "--from", f"hf:{there}/export", "--out", out, "--push"]
    away = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for arguments, environment, expected in (
        ([*push, "owner/tiny"], {"HF_TOKEN": "hf_wrong"}, "does not know this account"),
        ([*push, "owner/tiny"], {"HF_TOKEN": ""}, "not logged in: run hf auth login, or set HF_TOKEN"),
        ([*push, "owner/tiny"], away, "cannot be reached (ConnectionError): check the network"),
        (["detect", "--model", "owner/none", "a"], {}, "no such repository"),
        (["detect", "--model", "owner/none", "a"], away, "cannot be reached"),
    ):
        code, _, error = ask(hub, tmp_path, *arguments, **environment)
        assert code == 1 and expected in error, error
        assert not out.exists()  # it is asked before the work
    code, _, error = ask(hub, tmp_path, *push, "someone/tiny")
    assert code == 1 and "no permission for this account" in error and "stays here" in error, error
    hub.refuses_objects = True
    code, _, error = ask(hub, tmp_path, *push, "owner/tiny")
    assert code == 1 and "refused: 507" in error and "stays here" in error, error
    assert (out / "generator/README.md").exists() and not hub.commits
