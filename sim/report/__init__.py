"""How an answer is told: HTML pages, tables, the demo's report, pictures for lessons."""
