"""Play every attack story and say what happened: ``make attacks``.

Runs the stories below this folder, and those against the server's API, in processes of their own.
The last line is ``attacks: N tried, N refused``; the exit code is 0 only if the two are equal.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

HERE = Path(__file__).parent
REPORTS = ("POST /v1/report", "POST /v1/consent")
ELSEWHERE = (
    "tests/e2e/test_neighbours.py",
    "tests/e2e/test_server_refusals.py",
    "tests/e2e/test_server_machine.py",
    "tests/unit/payload/test_mcuboot.py",
    "tests/unit/server/test_people.py",
    "tests/unit/trust/test_legacy.py",
)
"""Stories whose victim is the server or the release tool; only their numbered cases are attacks."""


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        evidence, results = Path(directory) / "evidence", Path(directory) / "results.xml"
        evidence.touch()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-n",
                "2",
                "--no-header",
                "--tb=short",
                f"--junit-xml={results}",
                str(HERE.relative_to(HERE.parent.parent)),
                *ELSEWHERE,
                "-k",
                "test_0 or test_1 or test_2 or test_3 or test_4 or test_5 or test_6 or withheld",
            ],
            check=False,
            cwd=HERE.parent.parent,
            env={**os.environ, "FIRMAMENT_ATTACK_EVIDENCE": str(evidence)},
            stdout=subprocess.PIPE,
            text=True,
        )
        told = {line["story"]: line for line in map(json.loads, evidence.read_text().splitlines())}
        cases = list(ET.parse(results).getroot().iter("testcase"))
        refused = 0
        for case in sorted(cases, key=lambda case: case.get("name", "")):
            name = case.get("name", "")
            is_refused = not any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
            refused += is_refused
            story = told.get(name, {})
            print(f"{'refused ' if is_refused else 'FAILED  '} {name.removeprefix('test_')}  {story.get('title', '')}")
            for item in story.get("told", []):
                asked = [line for line in item["asked"] if not line.startswith(REPORTS)]
                print(f"          {item['code']}; {len(asked)} requests, the last: {asked[-1] if asked else 'none'}")
    if done.returncode:
        print(done.stdout)
    print(f"attacks: {len(cases)} tried, {refused} refused")
    return 0 if cases and refused == len(cases) and done.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
