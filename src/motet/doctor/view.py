"""What the doctor found, for a terminal: at most 110 columns."""

from __future__ import annotations

from collections.abc import Sequence

from motet.doctor.examine import Case, Examined
from motet.plan.sizing import parameters_in_words

HEAD = f"{'compared':<62}{'measure':<18}{'tolerance':>10}{'difference':>11}  result"


def title(model: str, case: Case) -> str:
    place = f"{case.gpus} GPU" if case.device == "cuda" else "CPU"
    processes = {"cuda": "nccl", "cpu": "gloo on the CPU in float32", "": "none"}[case.processes_on]
    return (
        f"{model}: {parameters_in_words(case.parameters)}, {case.heads} heads\n"
        f"on {place}, {case.dtype}; several processes: {processes}\n\n{HEAD}"
    )


def lines(examined: Examined) -> str:
    found = []
    for finding in examined.findings:
        if finding.difference is None:
            found.append(f"{finding.what[:61]:<62}{finding.status}: {finding.reason}")
            continue
        found.append(
            f"{finding.what[:61]:<62}{finding.measure:<18}{finding.tolerance:>10.0e}{finding.difference:>11.1e}"
            f"  {finding.status}"
        )
    return "\n".join(found)


def summary(all_of: Sequence[Examined]) -> str:
    findings = [finding for one in all_of for finding in one.findings]
    counts = {status: sum(f.status.lower() == status for f in findings) for status in ("ok", "failed", "not run")}
    seconds = sum(one.seconds for one in all_of)
    return f"\n{counts['ok']} ok, {counts['failed']} failed, {counts['not run']} not run; {seconds:.0f} s"
