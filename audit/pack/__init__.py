"""Evidence packs: what happened in a period, how complete and how sure that is, in a signed zip that anybody can check."""
