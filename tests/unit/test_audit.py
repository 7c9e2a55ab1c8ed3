from tools.audit import CLEAN, FOUND, NOT_RUN, Advisory, Package, Report, verdict

GOOD = Package("msgspec", "0.22.0")
BAD = Package("numpy", "2.4.0", [Advisory("PYSEC-1", ["2.4.1", "2.5"]), Advisory("PYSEC-2")])
UNKNOWN = Package("anyio", skip_reason="not found")


def test_packages_against_which_nothing_is_known_pass() -> None:
    assert verdict(Report([GOOD])) == (CLEAN, ["nothing is known against the 1 packages of requirements.lock"])


def test_whatever_is_known_fails_and_says_what_would_help() -> None:
    status, lines = verdict(Report([GOOD, BAD, UNKNOWN]))
    assert status == FOUND
    assert lines == [
        "numpy 2.4.0: PYSEC-1, fixed in 2.4.1, 2.5",
        "numpy 2.4.0: PYSEC-2, fixed in no version yet",
        "not audited: anyio",
    ]


def test_a_package_that_could_not_be_asked_about_does_not_pass_for_a_clean_one() -> None:
    status, lines = verdict(Report([GOOD, UNKNOWN]))
    assert status == NOT_RUN
    assert lines == ["not audited: anyio", "THE AUDIT WAS NOT RUN IN FULL: 1 of 2 packages"]
    assert verdict(Report([]))[0] == NOT_RUN
