"""`python -m lab.evals kl | ppl | humaneval`: what the models of this machine are worth.

The daemon does not give logits, so kl and ppl load the models themselves, with the engine's own
code: a reference stays in memory beside the model, unquantised weights with 4 bytes each on a CPU.
humaneval asks a running daemon and runs its answers in a sandbox.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab.evals import divergence, humaneval, texts
from youtu_llm import manifest, paths
from youtu_llm.engine import backend as backends
from youtu_llm.errors import YoutuError
from youtu_llm.protocol import EngineConfig
from youtu_llm.tools.evals import command, datasets
from youtu_llm.tools.evals.command import Progress
from youtu_llm.tools.evals.results import Results

DOMAINS = ("chinese", "english", "mathematics", "code")


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except YoutuError as error:
        print(f"lab.evals: {error.message}", file=sys.stderr)
        return error.exit_status
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m lab.evals", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    kl = commands.add_parser("kl", help="compare a model with the one it was made from")
    ppl = commands.add_parser("ppl", help="how well a model predicts held-out text")
    for made in (kl, ppl):
        made.add_argument("model", metavar="MODEL", help="a model's name or directory")
    ppl.set_defaults(reference=None)
    kl.add_argument("reference", metavar="REFERENCE", help="the original's name or directory")
    for made in (kl, ppl):
        made.set_defaults(run=_measure)
        made.add_argument(
            "--domain", action="append", choices=DOMAINS, help="only this one; may be given again"
        )
        made.add_argument("--file", type=Path, metavar="FILE", help="a text of yours instead")
        made.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda")
        made.add_argument("--threads", type=command.positive, metavar="N", help="CPU threads (all)")
        made.add_argument(
            "--kernels",
            choices=("auto", "native", "reference"),
            default="auto",
            help="reference: plain torch, the weights' loss without the kernels' (%(default)s)",
        )
        command.add_common(made, "documents of a domain (all)")
    task = commands.add_parser("humaneval", help="Python functions; their tests run in a sandbox")
    task.set_defaults(run=lambda args: command.ask(args, humaneval.TASK))
    command.add_task(task)
    return parser


def _measure(args: argparse.Namespace) -> None:
    reference: str | None = args.reference
    folders = [paths.find_model(name) for name in (args.model, reference) if name]
    if args.file:
        held_out = texts.of_file(args.file, args.limit)
    else:
        held_out = texts.held_out(datasets.folder(args.data), args.domain or DOMAINS, args.limit)
    backend = backends.choose(
        EngineConfig(
            str(folders[0]), device=args.device, kernels=args.kernels, threads=args.threads or 0
        )
    )
    for note in backend.degraded:
        print(f"youtu: {note}", file=sys.stderr)
    kind = "kl" if reference else "ppl"
    about = {
        "eval": kind,
        "models": [[folder.name, manifest.identity(folder)] for folder in folders],
        "data": held_out.digest,
        "backend": backend.ops.name,
    }
    names = "-".join((kind, *(folder.name for folder in folders), *(args.domain or ())))
    out = args.out or Path(f"eval-{names}.jsonl")
    with Results(out, about) as results:
        try:
            divergence.run(
                folders[0],
                folders[1] if reference else None,
                held_out.documents,
                results,
                backend,
                on_progress=Progress("documents"),
            )
        finally:
            wanted = {document.id for document in held_out.documents}
            if rows := [row for row in results.rows if row["id"] in wanted]:
                print(divergence.report(rows, with_reference=bool(reference)))
                if len(rows) < len(wanted):
                    print(f"{len(rows)} of {len(wanted)} documents are measured")
                print(f"every document: {out} (computed by: {backend.ops.name})")


if __name__ == "__main__":
    sys.exit(main())
