"""Early warnings: facts from the ledger and the log -> pure rules -> findings that come, last and go. docs/findings.md."""
