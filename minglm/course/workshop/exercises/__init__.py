"""The sheets' sources, a file per notebook: text, tasks, and the solutions that the blank sheets leave out."""
