"""SLURM's commands as far as submitit and ``training/sweep/slurm.py`` ask for them: jobs are processes of this machine.

Its state is in files: ``queue/<job>`` holds the state of a living job. While there is a file ``held``, jobs stay
pending; while there is ``broken``, ``squeue`` fails; ``accounts`` is what ``sacct`` prints.
"""

from __future__ import annotations

from pathlib import Path

SCRIPT = r"""#!/bin/bash
shopt -s extglob
set -euo pipefail
state=$FAKE_SLURM
queue() { echo "$2" >"$state/.$1" && mv "$state/.$1" "$state/queue/$1"; }
case ${0##*/} in
sbatch)
    number=1
    while ! mkdir "$state/$number" 2>/dev/null; do number=$((number + 1)); done
    cp "$1" "$state/$number/script"
    last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$1")
    for job in $([ -z "$last" ] && echo "$number" || seq -f "${number}_%g" 0 "$last"); do
        queue "$job" PENDING
        if [ ! -e "$state/held" ]; then setsid "${0%/*}/start_job" "$job" </dev/null >/dev/null 2>&1 & fi
    done
    echo "Submitted batch job $number" ;;
start_job)
    export SLURM_JOB_ID=$1
    if [[ $1 == *_* ]]; then export SLURM_ARRAY_JOB_ID=${1%_*} SLURM_ARRAY_TASK_ID=${1#*_}; fi
    while queue "$1" RUNNING; do
        bash "$state/${1%_*}/script" || true
        rm "$state/requeued_$1" || break
    done
    rm "$state/queue/$1" ;;
srun)
    while [[ $1 == --* ]]; do
        case $1 in --output | --error) declare "${1#--}=${2//@(%A_%a|%j)/$SLURM_JOB_ID}" && shift ;; esac
        shift
    done
    exec "$@" >>"${output/\%t/0}" 2>>"${error/\%t/0}" ;;
squeue)
    [ ! -e "$state/broken" ]
    for file in "$state"/queue/*; do
        if word=$(cat "$file" 2>/dev/null); then echo "${file##*/} $word"; fi
    done ;;
scontrol) touch "$state/requeued_$2" ;;
sacct) cat "$state/accounts" ;;
scancel) rm "$state/queue/$1" ;;
esac
"""


class FakeSlurm:
    """Its commands in ``commands``, its state in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, folder / "bin"
        for each in (self.commands, folder / "queue"):
            each.mkdir(parents=True)
        for name in ("sbatch", "start_job", "srun", "squeue", "scontrol", "sacct", "scancel"):
            command = self.commands / name
            command.write_text(SCRIPT)
            command.chmod(0o755)

    def environment(self, path: str) -> dict[str, str]:
        """What finds the commands before those on ``path``."""
        return {"PATH": f"{self.commands}:{path}", "FAKE_SLURM": str(self.folder)}

    def queue(self) -> dict[str, str]:
        """The living jobs and their states."""
        return {file.name: file.read_text().strip() for file in (self.folder / "queue").iterdir()}
