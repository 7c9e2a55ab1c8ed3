import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import Fuzzing, Services

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("name", ["producer", "consumer"])
def test_every_documented_call_answers_as_documented_whatever_it_is_sent(
    name: str, services: Services, fuzzing: Fuzzing, tmp_path: Path
) -> None:
    service = services.producer if name == "producer" else services.consumer
    address = f"http://127.0.0.1:{service.port}/schema/openapi.json"
    amount = ["--max-examples", str(fuzzing.examples), "--seed", str(fuzzing.seed)]
    done = subprocess.run(
        [_program(), "--config-file", FOLDER / "schemathesis.toml", "--no-color", "run", address, *amount],
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(FOLDER / "hooks.py")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert service.answers("/livez", 200)


def _program() -> Path:
    return Path(sys.executable).with_name("schemathesis")
