"""Who may import whom: import-linter's contracts (pyproject.toml), and what they cannot say."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "steering", "server")
NO_TORCH = [
    "server/engine/scheduler.py",
    "server/request.py",
    "server/api/fields.py",
    "server/api/messages.py",
    "server/api/chat_request.py",
    "server/media/files.py",
    "steering/manifest.py",
    "steering/policy.py",
]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]


def test_contracts_hold() -> None:
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run = subprocess.run(
        [sys.executable, "-c", lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "kept, 0 broken" in run.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_do_not_import_tests_or_benchmarks(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): bad for f in files if (bad := set(imported(f)) & {"tests", "benchmarks"})}
    assert not wrong


@pytest.mark.parametrize("name", NO_TORCH)
def test_holds_no_torch(name: str) -> None:
    assert "torch" not in set(imported(ROOT / name))


def test_only_its_own_engine_knows_vllm() -> None:
    """A server without `--engine vllm` neither needs it nor takes its seconds to import it."""
    know = {str(file.relative_to(ROOT)) for file in (ROOT / "server").rglob("*.py") if "vllm" in set(imported(file))}
    assert know == {
        f"server/engine/vllm/{name}.py" for name in ("core", "model", "pictures", "rank", "runner_v2", "start")
    }
    launch = ast.parse((ROOT / "server/engine/launch.py").read_text())
    assert not [node for node in launch.body if isinstance(node, ast.ImportFrom) and "vllm" in (node.module or "")]
