"""`clustersim claims`: the ledger of what the article says."""

from __future__ import annotations

import argparse

from minglm.runtime.terminal import json_text

TEXT = "every claim of the article: recomputed, traced to its sources, or marked as not to be known here"
EXAMPLES = """clustersim claims
clustersim claims total-params
clustersim claims --id total-params --json"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("claim", nargs="?", help="one claim, with its reason and sources")
    parser.add_argument("--id", dest="claim_id", metavar="ID", help="the same, as an option")
    parser.add_argument("--json", action="store_true", help="for machines")


def main(args: argparse.Namespace) -> int:
    from sim.claims.ledger import format_one, format_table, run

    claim = args.claim or args.claim_id
    result = run(only=claim)
    if args.json:
        print(json_text(result, indent=1))
    else:
        print(format_one(result["claims"][0]) if claim else format_table(result))
    return 0 if result["all_follow"] else 1
