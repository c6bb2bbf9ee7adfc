"""plan: what it counts against hand counts and arithmetic, through the real TPU compiler where it is installed."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import SPECIAL, tiny_config

from electra_flax.commands.cli import main
from electra_flax.config.loading import load_config
from electra_flax.config.schema import MeshConfig
from electra_flax.errors import UserError
from electra_flax.finetuning.batches import collate
from electra_flax.finetuning.encoding import Row
from electra_flax.finetuning.heads import make_head
from electra_flax.finetuning.step import Network, make_steps
from electra_flax.finetuning.task_files import load_task, load_training
from electra_flax.model.sharding import batch_sharding, make_mesh, state_shardings
from electra_flax.planning import compilation, compile_times, kernel_schedule, plan, program_cost
from electra_flax.planning.program_cost import Hardware
from electra_flax.runtime import progress_bar, tpus
from electra_flax.runtime.tpus import GENERATIONS, parse_slice
from electra_flax.training import initial_state, step
from electra_flax.training.flops import step_flops
from electra_flax.training.initial_state import abstract_state
from electra_flax.training.objectives import make_objective

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="NOT CHECKED: the TPU compiler (extra tpu) is not installed: make tpu-compiler",
)
CONFIGS = Path(__file__).parents[1] / "configs"
V3 = parse_slice("v3-8")
HARDWARE = Hardware(
    clock_hz=V3.generation.clock_hz,
    hbm_bytes_per_second=V3.generation.memory_bytes_per_second,
    link_bytes_per_second=V3.generation.link_bytes_per_second,
    collective_latency_seconds=0.0,
)


@pytest.fixture(scope="module")
def v3_devices():
    """Eight cores of a v3-8 to compile for, optimisations on as in a run."""
    os.environ.update(
        {name: os.environ.get(name, value) for name, value in kernel_schedule.COMPILER_ENVIRONMENT.items()}
    )
    from jax.experimental import topologies

    jax.config.update("jax_disable_most_optimizations", False)
    yield topologies.get_topology_desc(platform="tpu", topology_name=V3.topology_name).devices
    jax.config.update("jax_disable_most_optimizations", True)


def compile_for(devices, function, *shapes, specs=None):
    mesh = jax.sharding.Mesh(devices, "x") if specs else jax.sharding.Mesh(devices[:1], "x")
    specs = specs or [jax.P()] * len(shapes)
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).compile().as_text()


def seconds(text):
    return sum(cost.seconds for cost in program_cost.operation_costs(program_cost.parse(text), HARDWARE))


@needs_compiler
@pytest.mark.parametrize("size", [2048, 4096, 8192])
def test_matrix_products_take_arithmetic_over_peak(v3_devices, size):
    text = compile_for(v3_devices, jnp.matmul, (size, size), (size, size))
    expected = 2 * size**3 / V3.generation.flops_per_second
    assert seconds(text) == pytest.approx(expected, rel=0.10)


@needs_compiler
def test_a_loop_counts_as_often_as_it_runs(v3_devices):
    def repeated(x, w, times):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=times)[0]

    shapes = ((1024, 1024), (1024, 1024))
    few, many = (
        seconds(compile_for(v3_devices, lambda x, w, n=times: repeated(x, w, n), *shapes)) for times in (7, 21)
    )
    assert many == pytest.approx(3 * few, rel=0.05)
    assert many > 20 * 2 * 1024**3 / V3.generation.flops_per_second


@needs_compiler
def test_collectives_cost_bytes_over_bandwidth(v3_devices):
    rows = 8 * 4096

    def gradient(x, y):
        return x.T @ y  # both split by rows: every device holds a part of the sum

    text = compile_for(v3_devices, gradient, (rows, 1024), (rows, 2048), specs=[jax.P("x"), jax.P("x")])
    costs = program_cost.operation_costs(program_cost.parse(text), HARDWARE)
    collectives = [cost for cost in costs if cost.basis == "collective"]
    size = 1024 * 2048 * 2
    expected = 2 * size * 7 / 8 / V3.generation.link_bytes_per_second
    assert sum(cost.seconds for cost in collectives) == pytest.approx(expected, rel=0.02)


@needs_compiler
def test_a_loop_whose_trips_depend_on_data_counts_once_and_is_named(v3_devices):
    def repeated(x, w):
        times = jnp.abs(x).sum().astype(jnp.int32)
        return jax.lax.fori_loop(0, times, lambda _, x: x @ w, x)

    text = compile_for(v3_devices, repeated, (1024, 1024), (1024, 1024))
    assert program_cost.unbounded_loops(program_cost.parse(text)) == ("jit(repeated)/while",)
    once = 2 * 1024**3 / V3.generation.flops_per_second
    assert once < seconds(text) < 5 * once


def test_what_only_the_compiler_reads_costs_nothing():
    def entry(target):
        return (
            "ENTRY %main (p: f32[1000]) -> f32[1000] {\n  %p = f32[1000]{0} parameter(0)\n"
            f'  ROOT %c = f32[1000]{{0}} custom-call(%p), custom_call_target="{target}"\n}}'
        )

    assert seconds(entry("ConcatBitcast")) == seconds(entry("AssumeGatherIndicesInBound")) == 0
    assert seconds(entry("TopK")) == pytest.approx(8000 / HARDWARE.hbm_bytes_per_second)


def test_the_cache_knows_the_compilers_options(monkeypatch):
    monkeypatch.setattr(compilation.importlib.metadata, "version", lambda name: "1")
    before = compilation._program_hash("program", V3)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_enable_something=true")
    assert compilation._program_hash("program", V3) != before


def test_a_compile_foretells_only_what_was_timed_before(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(progress_bar, "_PLAIN_SECONDS", 0.01)
    caplog.set_level("INFO", logger="electra_flax")

    def compiled(like="24 layers", is_kept=True):
        caplog.clear()
        with compile_times.timed("2 of 3, compiling for v3-8", like, tmp_path) as clock:
            time.sleep(0.7)
            clock.is_kept = is_kept
        return capsys.readouterr().err, caplog.messages

    shown, (begun, ended) = compiled(is_kept=False)
    assert set(shown.splitlines()) <= {f"2 of 3, compiling for v3-8: {n} s so far" for n in (0, 1)} and shown
    assert begun == "2 of 3, compiling for v3-8 (24 layers: not timed here yet)"
    assert ended == "2 of 3, compiling for v3-8: done in 1 s"
    assert not list(tmp_path.iterdir()), "how soon a program is refused foretells nothing"
    compiled()
    _, (begun, _) = compiled()
    assert begun.startswith("2 of 3, compiling for v3-8 (24 layers: 1 s here on 20")
    assert "not timed" in compiled("12 layers")[1][0], "another program takes another time"
    (tmp_path / "compile_times.json").write_text("{")
    assert "not timed" in compiled()[1][0]


def test_what_is_left_of_a_compile_is_said_as_long_as_it_is_known():
    assert compile_times.said("compiling", 63, None) == "compiling: 1 min 3 s so far"
    known = "compiling: 1 min 3 s so far, about 3 min 29 s to go, 4 min 32 s last time"
    assert compile_times.said("compiling", 63, 272) == known
    assert compile_times.said("compiling", 63, 272, width=60) == "compiling: 1 min 3 s so far, about 3 min 29 s to go"
    assert compile_times.said("compiling", 300, 272) == "compiling: 5 min so far, longer than last time (4 min 32 s)"


def reduced_types(text):
    """What each all-reduce adds up: the element types of its result."""
    found = [line for line in text.splitlines() if re.search(r" all-reduce(-start)?\(", line)]
    assert found
    return {kind for line in found for kind in re.findall(r"\b([a-z]+\d+)\[", line.split(" all-reduce")[0])}


@needs_compiler
@pytest.mark.slow
def test_gradients_cross_devices_in_float32(v3_devices):
    """Also where the products are bfloat16: those of dense layers, biases and the table that both ends share."""
    config = tiny_config(training={"compute_dtype": "bfloat16"}, model={"num_hidden_layers": 1})
    mesh = make_mesh(config.mesh, list(v3_devices))
    state = initial_state.abstract_state(config)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state, state_shardings(state, mesh),
    )  # fmt: skip
    batch = initial_state.abstract_batch(config, batch_sharding(mesh))
    train_step = step.make_train_step(config, make_objective(config, SPECIAL), mesh)
    lowered = train_step.trace(state, batch).lower(lowering_platforms=("tpu",))
    text = lowered.compile().as_text()
    assert reduced_types(text) == {"f32", "s32"} and " bf16[" in text


def test_collective_formulas():
    def cost(kind, groups):
        text = f"f32[1000]{{0}} {kind}(%x), replica_groups={groups}"
        return program_cost.collective_seconds(program_cost.Instruction("c", kind, text, "f32[1000]{0}"), HARDWARE)

    unit = 4000 / HARDWARE.link_bytes_per_second
    assert cost("all-reduce", "{{0,1,2,3}}") == pytest.approx(1.5 * unit)
    assert cost("all-gather", "[2,4]<=[8]") == pytest.approx(0.75 * unit)
    assert cost("reduce-scatter", "{{0,1,2,3}}") == pytest.approx(3 * unit)
    assert cost("all-reduce", "mesh['a'=8,'b'=2] {'b'}") == pytest.approx(1.0 * unit)
    reordered = "mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}"
    assert cost("all-reduce", reordered) == pytest.approx(1.0 * unit)
    assert cost("all-reduce", "{{0}}") == 0


def test_bundles_and_their_delays_are_cycles():
    text = """
= control target key start
     0   :  { %s1 = smov 1  ;;  %2 = vnop }
   0x1 LB:  { %3 = vadd.f32 %v1, %v2  ;;  %4 = vdelay 3 }
   0x2   :  { %5 = vmatmul.f32.gmra.mxu0 %v3 }
"""
    assert kernel_schedule.bundle_cycles(text) == 3 + 3


@pytest.mark.slow
@needs_compiler
def test_the_kernel_is_costed_from_its_schedule():
    spec = {"num_heads": 2, "head_size": 64, "rate": 0.1, "matmul_dtype": "float32", "interpret": False}
    kernels = [{"rows": rows, "dtype": "bfloat16", "spec": spec | {"tokens": tokens}}
               for rows, tokens in ((4, 128), (8, 128), (4, 256))]  # fmt: skip
    cycles = kernel_schedule.schedule_cycles(V3.topology_name, kernels)
    forward, twice, longer = (
        cycles[f"electra_attention_forward [{shape}]"] for shape in ("4,128,128", "8,128,128", "4,128,256")
    )
    assert twice == 2 * forward
    # Two matrix products for each head, on two units of 128 x 128 of which a head of 64 fills half.
    for tokens, found in ((128, forward), (256, longer)):
        least = 4 * 2 * 2 * tokens**2 * 128 / (2 * 128 * 128)
        assert least < found < 12 * least
    assert cycles["electra_attention_backward [4,128,256]"] > 1.4 * longer


def hand_count(config):
    """Multiply-adds of the forward pass, times two, times three for the gradients."""
    batch, tokens = config.training.batch_size, config.data.max_seq_length
    masked, vocab = config.max_predictions_per_seq, config.model.vocab_size
    embedding = config.model.embedding_size

    def transformer(part):
        hidden = part.hidden_size
        layer = 4 * hidden**2 + 2 * hidden * part.intermediate_size + 2 * tokens * hidden
        return part.num_hidden_layers * layer + (embedding * hidden if embedding != hidden else 0)

    generator = tokens * transformer(config.generator)
    generator += masked * (config.generator.hidden_size * embedding + embedding * vocab)
    discriminator = tokens * (transformer(config.model) + config.model.hidden_size**2 + config.model.hidden_size)
    return 3 * 2 * batch * (generator + discriminator)


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(path.stem, marks=[] if path.stem == "electra_small" else pytest.mark.slow)
        for path in sorted(CONFIGS.glob("*.yaml"))
    ],
)
def test_flops_against_a_hand_count(preset):
    config = load_config(CONFIGS / f"{preset}.yaml")
    assert step_flops(config) == pytest.approx(hand_count(config), rel=0.03)


def test_flops_do_not_depend_on_accumulation():
    whole, sliced = tiny_config(), tiny_config(training={"gradient_accumulation_steps": 4})
    assert step_flops(whole) == pytest.approx(step_flops(sliced), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "topology", "devices"),
    [("v2-8", "v2:2x2", 8), ("v3-8", "v3:2x2", 8), ("v3-32", "v3:4x4", 32), ("v3-128", "v3:8x8", 128),
     ("v4-8", "v4:2x2x1", 4), ("v4-32", "v4:2x2x4", 16), ("v5litepod-8", "v5e:2x4", 8), ("v5p-8", "v5p:2x2x1", 4),
     ("v6e-8", "v6e:2x4", 8), ("v5litepod-1", "v5e:1x1", 1), ("v6e-1", "v6e:1x1", 1)],
)  # fmt: skip
def test_slices_as_they_are_rented(name, topology, devices):
    where = parse_slice(name)
    assert (where.topology_name, where.num_devices) == (topology, devices)
    assert where.dollars_per_hour > 0


@needs_compiler
def test_slices_exist_for_the_compiler(v3_devices):
    from jax.experimental import topologies

    for name in (*(f"{generation.prefix}-8" for generation in GENERATIONS), "v5litepod-1", "v6e-1"):
        where = parse_slice(name)
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=where.topology_name, **where.compiler_options
        )
        assert len(described.devices) == where.num_devices


@pytest.mark.parametrize("name", ["v3", "v3-7", "v3-48", "v9-8", "v3-8 ", "v5litepod-2", "v5p-1", "v4-2"])
def test_no_slice_of_that_name(name):
    with pytest.raises(UserError, match="--topology"):
        parse_slice(name)


def run_plan(*arguments, cache):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [Path(sys.executable).with_name("electra-flax"), "plan", "--config", str(CONFIGS / "demo.yaml"), *arguments],
        capture_output=True, text=True, check=False, env=environment | {"XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


SMALL = ("--topology", "v3-8", "--model.num_hidden_layers", "1", "--generator.num_hidden_layers", "1",
         "--data.max_seq_length", "128", "--model.max_position_embeddings", "128", "--batch", "64",
         "--dtype", "bfloat16", "--model.hidden_size", "128", "--model.num_attention_heads", "2",
         "--generator.hidden_size", "64", "--generator.num_attention_heads", "1")  # fmt: skip


@needs_compiler
@pytest.mark.slow
def test_the_same_program_twice_gives_the_same_answer(tmp_path, v3_devices):
    answers = []
    for cache in (tmp_path / "one", tmp_path / "two", tmp_path / "two"):  # two compilations, then the cached one
        code, out, err = run_plan(*SMALL, "--json", "--explain", "5", cache=cache)
        assert code == 0, err
        answers.append(json.loads(out))
    assert answers[0] == answers[1] == answers[2]
    answer = answers[0]
    assert answer["fits"] and answer["attention"] == "kernel" and answer["predicted_real_tokens_per_second"] is None
    assert answer["predicted_parts_seconds"]["attention kernel"] > 0
    assert math.isclose(sum(answer["predicted_parts_seconds"].values()), answer["predicted_step_seconds"])
    for operation in answer["costliest"]:
        assert operation["source"].startswith("electra_flax/") or not operation["source"]
    assert any(operation["source"] for operation in answer["costliest"])

    # Memory is what JAX itself says of the same program.
    from electra_flax.model.attention_choice import choose_attention

    config = load_config(CONFIGS / "demo.yaml", _fields(SMALL))
    mesh = make_mesh(config.mesh, list(v3_devices))
    state = initial_state.abstract_state(config)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state, state_shardings(state, mesh),
    )  # fmt: skip
    attend = choose_attention(config.architecture, config.data.max_seq_length, mesh, check=False)
    train_step = step.make_train_step(config, make_objective(config, compilation._SPECIAL), mesh, attend)
    batch = initial_state.abstract_batch(config, batch_sharding(mesh))
    analysis = train_step.trace(state, batch).lower(lowering_platforms=("tpu",)).compile().memory_analysis()
    memory = answer["memory"]
    assert memory["arguments"] == analysis.argument_size_in_bytes
    assert memory["temporaries"] == analysis.temp_size_in_bytes
    assert memory["outputs"] == analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    assert memory["code"] == analysis.generated_code_size_in_bytes


def _fields(arguments):
    short = {"--batch": "--training.batch_size", "--dtype": "--training.compute_dtype"}
    return [short.get(part, part) for part in arguments if part not in ("--topology", "v3-8")]


def test_packed_rows_are_planned_from_how_full_rows_are(monkeypatch):
    config = load_config(CONFIGS / "koelectra_base_v3.yaml", ["--data.packing", "best_fit"])
    mesh = make_mesh(config.mesh, jax.devices()[:8])
    (phase,) = config.phases
    packed, fill = plan._in_rows(phase, mesh, 0.646)
    assert (packed.training.batch_size, fill) == (168, 0.993)
    shapes = initial_state.abstract_batch(packed)
    assert shapes["segments"].shape == (168, 512) and shapes["examples"].shape == (168, 8)
    with pytest.raises(UserError, match="give --fill F, the share of rows"):
        plan._in_rows(phase, mesh, None)
    with pytest.raises(UserError, match="long phase: .*give --long-fill F"):
        plan._in_rows(phase._replace(name="long phase: ", start=3), mesh, None)
    (phase,) = load_config(CONFIGS / "koelectra_base_v3.yaml").phases
    assert plan._in_rows(phase, mesh, 0.5) == (phase.config, 0.5)
    four = dataclasses.replace(config, packing=dataclasses.replace(config.packing, segments=5, batch="rows"))
    assert plan._in_rows(four.phases[0], mesh, 0.5)[1] == 0.967
    assert plan._in_rows(four.phases[0], mesh, 0.5)[0].training.batch_size == 256


def test_mistakes_are_one_line(tmp_path):
    for arguments, complaint in (
        (("--topology", "v3-9"), "v3 slices have a power of two of cores"),
        (("--topology", "v3-8", "--batch", "100"), "must be a multiple of 8"),
        (("--topology", "v3-8", "--model.hidden_siz", "3"), "--model.hidden_siz: unknown field"),
    ):
        if "100" in arguments and importlib.util.find_spec("libtpu") is None:
            continue
        code, out, err = run_plan(*arguments, cache=tmp_path)
        assert code == 1 and not out
        assert complaint in err.splitlines()[-1] and "Traceback" not in err


# A model whose programs compile in seconds.
FEW_LAYERS = ("--dtype", "bfloat16", "--model.vocab_size", "600", "--model.num_hidden_layers", "1",
              "--generator.num_hidden_layers", "1")  # fmt: skip


@needs_compiler
@pytest.mark.slow
def test_what_the_compiler_refuses_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load_config(CONFIGS / "demo.yaml", _fields((*FEW_LAYERS, "--batch", "262144")))
    (phase,) = config.phases
    refused = plan._plan_one(phase, parse_slice("v2-8"), None, 0, None)
    assert not refused.fits and refused.memory["needed"] > refused.memory["limit"]
    assert refused == plan._plan_one(phase, parse_slice("v2-8"), None, 0, None), "kept as it was found"


@needs_compiler
@pytest.mark.long
def test_what_does_not_fit_says_so_with_three_ways_out(tmp_path, monkeypatch, capsys):
    """With less memory instead of more rows, which take the compiler minutes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    limit = 100_000_000
    small = tuple(dataclasses.replace(each, memory_bytes=limit) for each in tpus.GENERATIONS)
    monkeypatch.setattr(tpus, "GENERATIONS", small)
    given = ["--config", str(CONFIGS / "demo.yaml"), "--topology", "v2-8", "--batch", "2048", *FEW_LAYERS, "--json"]
    assert main(["plan", *given]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert not answer["fits"] and answer["memory"]["needed"] > answer["memory"]["limit"] == limit
    changes = [way["change"] for way in answer["ways_out"]]
    accumulated = "--training.gradient_accumulation_steps 2"
    assert changes == [accumulated, f"{accumulated} --mesh.data 1 --mesh.fsdp -1", "--topology v2-16"]
    assert all(way["memory_needed"] < limit for way in answer["ways_out"])


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["nsmc", "naver-ner", "korquad"])
def test_fine_tuning_compiles_for_a_tpu(name, v3_devices):
    """The step and the prediction, in bfloat16 and data parallel."""
    encoder = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config, task = tiny_config(model=encoder, training={"compute_dtype": "bfloat16"}), load_task(name)
    training = load_training(name, task, "koelectra", config.model, ["--batch_size", "16", "--max_seq_length", "32"])
    head = make_head(task, training.head, config.model, 2, training.dropout)
    mesh = make_mesh(MeshConfig(), list(v3_devices))
    network = Network(config.architecture, head, mesh, 0, task.kind == "tagging")
    shapes = {"electra": abstract_state(config).params["electra"], **jax.eval_shape(head.init, jax.random.key(0))}
    steps = make_steps(network, training, 10, shapes)
    target = np.zeros({"tagging": 9, "answers": 3}.get(task.kind, ()), np.int32)
    rows = [Row(0, np.arange(9), np.zeros(9, np.int32), target, [])]
    batch = collate(rows, np.arange(1), 16, 32, 0, network.is_tagging)
    train, predict = (
        step.trace(*arguments).lower(lowering_platforms=("tpu",)).compile().as_text()
        for step, arguments in ((steps.train, (steps.shapes, batch, 0)), (steps.predict, (shapes, batch)))
    )
    assert "all-reduce" not in predict, "of gradients alone"
    assert "bf16" not in reduced_types(train)


@needs_compiler
@pytest.mark.parametrize(
    "generation",
    [
        pytest.param(found, marks=[] if found.prefix == "v3" else pytest.mark.slow, id=found.prefix)
        for found in GENERATIONS
    ],
)
def test_the_kernel_compiles_for_every_generation(generation):
    dtype = "float32" if generation.prefix in ("v2", "v3") else "bfloat16"  # as kernel_specs chooses
    spec = {"num_heads": 2, "head_size": 64, "tokens": 512, "rate": 0.1, "matmul_dtype": dtype, "interpret": False}
    # Of other numbers of rows, by which the cycles are named.
    kernels = [{"rows": rows, "dtype": "bfloat16", "spec": spec | {"is_packed": is_packed}}
               for rows, is_packed in ((8, False), (16, True))]  # fmt: skip
    cycles = kernel_schedule.schedule_cycles(parse_slice(f"{generation.prefix}-8").topology_name, kernels)
    assert len(cycles) == 4 and min(cycles.values()) > 0
    for name, found in cycles.items():
        if (
            "[8," in name
        ):  # the bias that tells examples apart costs next to nothing; most the forward pass on v5e, 1.3%
            assert cycles[name.replace("[8,", "[16,")] <= (2.03 if "forward" in name else 2.02) * found, cycles
