from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbone import BackboneInfo
from steering.bundle import TENSORS, load_guard, save_bundle
from steering.errors import BundleError
from steering.guard import Guard
from steering.head import RefusalHead
from steering.manifest import MANIFEST, Manifest, ModelBinding, load_manifest
from steering.policy import Mode
from steering.prober import Prober
from steering.readers import LastToken
from steering.specs import LayerFigures, Threshold
from tests.layouts import layout_of

INFO = BackboneInfo(
    name="someone/model",
    revision=None,
    architecture="TinyForConditionalGeneration",
    family="tiny",
    hidden_size=16,
    num_layers=4,
    vocab_size=50,
    context_length=128,
    dtype=torch.float32,
    device=torch.device("cpu"),
    eos_ids=frozenset({2}),
    template_hash="t" * 64,
    parameters=1000,
    weights_hash="w" * 64,
)


def manifest(**changes: Any) -> Manifest:
    return Manifest(
        **{
            "model": ModelBinding.of(INFO),
            "layer": 2,
            "prober_hidden": 64,
            "layers": [LayerFigures(layer=2, sas=0.3, auroc=0.9)],
            "thresholds": [
                Threshold(target_fpr=0.01, threshold=0.7, samples=200),
                Threshold(target_fpr=0.05, threshold=0.4, samples=200),
            ],
            "threshold": 0.7,
            "eps": 1.5,
            "refusal": "I can't help with that.",
            "validation": {"auroc": 0.9},
            "data_hash": "d" * 64,
            "data_size": 400,
            "versions": {"torch": torch.__version__},
            "date": "2026-01-01",
            "tensors_hash": "",
            **changes,
        }
    )


def write(folder: Path, *, hidden: int = 64, rank: int | None = None) -> tuple[Prober, RefusalHead]:
    torch.manual_seed(0)
    prober, head = Prober(16, hidden), RefusalHead(16, rank)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    prober.temperature.fill_(1.3)
    reader = LastToken(prober)
    save_bundle(folder, manifest(prober_hidden=hidden, head_rank=rank), reader, head, {"safe_scores": torch.rand(200)})
    return prober, head


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write(tmp_path / "guard")
    return tmp_path / "guard"


@pytest.mark.parametrize(("hidden", "rank"), [(64, None), (0, None), (8, 4)])
def test_what_is_saved_is_loaded(tmp_path: Path, hidden: int, rank: int | None) -> None:
    prober, head = write(tmp_path, hidden=hidden, rank=rank)
    guard = load_guard(tmp_path, INFO)
    states, eps = torch.randn(5, 16), torch.rand(5)
    scores = [guard.score(note[None], layout_of(1)) for note in guard.read(states[:, None])]
    torch.testing.assert_close(torch.tensor(scores), prober.score(states))
    assert torch.equal(guard.steer(states, eps), head.steer(states, eps))
    assert guard.manifest.model_dump(exclude={"tensors_hash"}) == manifest(
        prober_hidden=hidden, head_rank=rank
    ).model_dump(exclude={"tensors_hash"})
    assert len(guard.calibration["safe_scores"]) == 200
    assert not any(parameter.requires_grad for parameter in guard.parameters())


def test_a_bundle_of_before_there_were_several_layers_is_loaded(bundle: Path) -> None:
    edit(bundle, lambda data: data.pop("probe_layers"))
    assert load_guard(bundle, INFO).layers == [2]


def test_several_layers_are_read_side_by_side(tmp_path: Path) -> None:
    torch.manual_seed(0)
    prober = Prober(48, 64)
    save_bundle(tmp_path, manifest(probe_layers=[3, 2, 4]), LastToken(prober), RefusalHead(16), {})
    guard, states = load_guard(tmp_path, INFO), torch.randn(5, 3, 16)
    assert (guard.layer, guard.layers) == (2, [3, 2, 4])
    assert torch.equal(guard.read(states)[:, 0], prober(states.reshape(5, 48)))


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.manual_seed(5)
        save_bundle(
            tmp_path / name,
            manifest(),
            LastToken(Prober(16)),
            RefusalHead(16),
            {"b": torch.ones(2), "a": torch.ones(1)},
        )
    for file in (MANIFEST, TENSORS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "OtherForConditionalGeneration"),
        ("hidden_size", 32),
        ("num_layers", 6),
        ("vocab_size", 51),
        ("template_hash", "u" * 64),
        ("weights_hash", "x" * 64),
    ],
)
def test_another_model_is_refused_and_the_difference_named(bundle: Path, field: str, value: object) -> None:
    other = dataclasses.replace(INFO, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(BundleError) as caught:
        load_guard(bundle, other)
    message = str(caught.value)
    assert field in message
    assert str(value) in message
    assert str(getattr(INFO, field)) in message
    assert "\n" not in message


def test_the_same_model_elsewhere_or_in_another_dtype_is_accepted(bundle: Path) -> None:
    moved = dataclasses.replace(INFO, name="/somewhere/else", revision="abc", dtype=torch.bfloat16)
    assert load_guard(bundle, moved).layer == 2


def remove_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def remove_tensors(folder: Path) -> None:
    (folder / TENSORS).unlink()


def cut_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:200])


def empty_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("")


def manifest_of_bytes(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00")


def unknown_field(folder: Path) -> None:
    edit(folder, lambda data: data.update(surprise=1))


def newer_format(folder: Path) -> None:
    edit(folder, lambda data: data.update(format_version=4))


def eps_zero(folder: Path) -> None:
    edit(folder, lambda data: data.update(eps=0))


def threshold_two(folder: Path) -> None:
    edit(folder, lambda data: data.update(threshold=2))


def deep_layer(folder: Path) -> None:
    edit(folder, lambda data: data.update(layer=5))


def deep_layers(folder: Path) -> None:
    edit(folder, lambda data: data.update(probe_layers=[2, 6]))


def more_layers(folder: Path) -> None:
    edit(folder, lambda data: data.update(probe_layers=[2, 3]))


def other_prober(folder: Path) -> None:
    edit(folder, lambda data: data.update(prober_hidden=32))


def other_rank(folder: Path) -> None:
    edit(folder, lambda data: data.update(head_rank=4))


def cut_tensors(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-10])


def flipped_bit(folder: Path) -> None:
    data = bytearray((folder / TENSORS).read_bytes())
    data[-1] ^= 1
    (folder / TENSORS).write_bytes(data)


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    tensors["head.weight"][0, 0] = torch.nan
    reseal(folder, tensors)


def tensor_missing(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    del tensors["prober.second.bias"]
    reseal(folder, tensors)


def tensor_too_wide(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    tensors["head.weight"] = torch.zeros(17, 17)
    reseal(folder, tensors)


def no_tensors_at_all(folder: Path) -> None:
    (folder / TENSORS).write_bytes(b"not safetensors")
    seal(folder)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


def reseal(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / TENSORS)
    seal(folder)


def seal(folder: Path) -> None:
    digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    edit(folder, lambda data: data.update(tensors_hash=digest))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove_manifest, MANIFEST),
        (remove_tensors, TENSORS),
        (cut_manifest, MANIFEST),
        (empty_manifest, MANIFEST),
        (manifest_of_bytes, MANIFEST),
        (unknown_field, "surprise"),
        (newer_format, "format_version"),
        (eps_zero, "eps"),
        (threshold_two, "threshold"),
        (deep_layer, "layer 5"),
        (deep_layers, "layer 6"),
        (more_layers, "size mismatch"),
        (other_prober, "Prober"),
        (other_rank, "head|up|down"),
        (cut_tensors, TENSORS),
        (flipped_bit, TENSORS),
        (not_a_number, "head.weight"),
        (tensor_missing, "second.bias"),
        (tensor_too_wide, "weight"),
        (no_tensors_at_all, TENSORS),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(bundle: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match=says) as caught:
        load_guard(bundle, INFO)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        load_manifest(tmp_path / "nowhere")


def test_no_half_written_file_is_left_and_the_old_bundle_survives(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bundle / TENSORS).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(bundle)
    assert (bundle / TENSORS).read_bytes() == before
    assert sorted(path.name for path in bundle.iterdir()) == [MANIFEST, TENSORS]
    assert load_guard(bundle, INFO).layer == 2


class TestPolicies:
    @pytest.fixture
    def guard(self, bundle: Path) -> Guard:
        return load_guard(bundle, INFO)

    def test_the_bundle_gives_the_defaults(self, guard: Guard) -> None:
        policy = guard.manifest.policy()
        assert (policy.name, policy.mode, policy.threshold, policy.eps, policy.refusal) == (
            "default",
            Mode.STEER,
            0.7,
            1.5,
            "I can't help with that.",
        )

    def test_what_is_given_is_taken(self, guard: Guard) -> None:
        policy = guard.manifest.policy("strict", Mode.BLOCK, threshold=0.0, eps=0.0, refusal="No.", expose_scores=True)
        assert (policy.threshold, policy.eps, policy.refusal, policy.expose_scores) == (0.0, 0.0, "No.", True)

    def test_a_target_rate_is_looked_up(self, guard: Guard) -> None:
        assert guard.manifest.policy(target_fpr=0.05).threshold == 0.4

    def test_a_rate_that_was_not_calibrated_is_refused(self, guard: Guard) -> None:
        with pytest.raises(ValueError, match=r"0\.001.*has 0\.01, 0\.05"):
            guard.manifest.policy(target_fpr=0.001)

    def test_a_rate_and_a_threshold_are_one_too_many(self, guard: Guard) -> None:
        with pytest.raises(ValueError, match="one of them"):
            guard.manifest.policy(target_fpr=0.05, threshold=0.5)
