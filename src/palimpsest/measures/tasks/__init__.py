"""Tasks of lm-evaluation-harness: its prompts and metrics, on the Hub's data or on local files."""
