"""A test whose program is missing is skipped where a person works, and fails in CI."""

import pytest

from tests.helpers.programs import program


def test_a_missing_program_skips_a_test_and_fails_it_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTREC_NEEDS_PROGRAMS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="none-of-these is not installed; .ci/install-programs"):
        program("none-of-these")
    monkeypatch.setenv("FASTREC_NEEDS_PROGRAMS", "1")
    with pytest.raises(pytest.fail.Exception, match="none-of-these is not installed"):
        program("none-of-these")


def test_the_first_name_that_is_installed_counts() -> None:
    assert program("none-of-these", "bash").endswith("bash")
