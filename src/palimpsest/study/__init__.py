"""Studies: a declared grid, run once, resumed for ever, and a report worth sending. See docs/architecture.md."""
