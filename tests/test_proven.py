"""A proof is skipped where it passed for the same sources and tools, and nowhere else."""

from pathlib import Path

import pytest

from tests import proven

pytest_plugins = "pytester"

PROOFS = """
import pytest
@pytest.mark.proof
def test_holds(): pass
@pytest.mark.proof
def test_fails(): assert False
def test_is_no_proof(): pass
"""


def test_what_passed_is_skipped_on_request_until_the_sources_change(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(PROOFS)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    class Options:
        def pytest_addoption(self, parser: pytest.Parser) -> None:
            parser.addoption("--skip-proven", action="store_true")

    def passed_and_skipped(*options: str, sources: str, afterwards: str | None = None) -> tuple[int, int]:
        digests = iter([sources, afterwards or sources])
        monkeypatch.setattr(proven, "digest", lambda: next(digests))
        run = pytester.inline_run(*options, plugins=[Options(), proven.Proven(tmp_path / "proven")])
        passed, skipped, failed = run.countoutcomes()
        assert failed == 1
        return passed, skipped

    assert passed_and_skipped("--skip-proven", sources="a") == (2, 0)
    assert passed_and_skipped("--skip-proven", sources="a") == (1, 1), "what failed runs again"
    assert passed_and_skipped(sources="a") == (2, 0)
    assert passed_and_skipped("--skip-proven", sources="b", afterwards="c") == (2, 0)
    assert passed_and_skipped("--skip-proven", sources="b") == (2, 0), (
        "a run during which sources changed proves nothing"
    )
    assert passed_and_skipped("--skip-proven", sources="c") == (2, 0)


@pytest.mark.parametrize("changed", ["package/kernels.py", "csrc/a/b.cu", "tests/kernels/test_a.py", "setup.py"])
def test_every_source_is_in_the_digest(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proven, "ROOT", tmp_path)
    monkeypatch.setattr(proven, "PACKAGE", tmp_path / "package")
    (tmp_path / "setup.py").touch()
    before = proven.digest()
    assert proven.digest() == before
    (tmp_path / changed).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / changed).write_text("changed")
    assert proven.digest() != before


def test_another_version_of_a_package_is_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = proven.digest()
    (tmp_path / "triton-3.9.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert proven.digest() != before
