"""Who may import whom: `server -> steering -> models`, and only `server` knows HTTP."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "models": {"steering", "server", "fastapi", "starlette", "uvicorn", "prometheus_client", "tests"},
    "steering": {"server", "fastapi", "starlette", "uvicorn", "prometheus_client", "tests"},
    "server": {"tests"},
}
NO_TORCH = ["server/scheduler.py", "server/request.py", "server/schemas.py", "server/media.py", "steering/policy.py"]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_only_point_downwards(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): bad for f in files if (bad := set(imported(f)) & FORBIDDEN[package])}
    assert not wrong


@pytest.mark.parametrize("name", NO_TORCH)
def test_holds_no_torch(name: str) -> None:
    assert "torch" not in set(imported(ROOT / name))
