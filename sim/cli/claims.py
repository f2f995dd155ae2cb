"""`clustersim claims`: the ledger of what the article says."""

from __future__ import annotations

TEXT = "every claim of the article: recomputed, traced to its sources, or marked as not to be known here"
EXAMPLES = """clustersim claims
clustersim claims total-params
clustersim claims --id total-params --json"""


def add(parser) -> None:
    parser.add_argument("claim", nargs="?", help="one claim, with its reason and sources")
    parser.add_argument("--id", dest="claim_id", metavar="ID", help="the same, as an option")
    parser.add_argument("--json", action="store_true", help="for machines")


def main(args) -> int:
    from sim.claims.ledger import cli

    return cli(args.json, args.claim or args.claim_id)
