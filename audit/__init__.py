"""What happened and what it means: audit lines, events, who, findings, evidence."""
