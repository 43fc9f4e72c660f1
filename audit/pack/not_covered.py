"""What an evidence pack cannot show however complete its streams are, in words that stand in each pack."""

NOT_COVERED = [
    "What happened in a database with other credentials than those that Vault or OpenBao issued as leases: passwords of static "
    "roles, administrators, accounts that Vault does not know. Reads of static roles are counted among the exceptions.",
    "What a holder did with its credentials: statements in a database are not recorded here. An access is the read of "
    "credentials, a session is a connection under them; neither says what was read or written.",
    "What Vault does not log: the expiry of a lease, and the revocations that follow from that of a token. Ends of that kind are "
    "found by lookups and marked as inferred.",
    "What was changed in an audit file, or left out of it, before it was read here. Who can write into that file, or has a "
    "shipper's token, is believed.",
    "Losses on a node while it logs none of Leasehold's own requests, such as a standby. Those requests are made every ten "
    "seconds at most; a loss that falls between two of them and leaves no trace in the file is not seen.",
    "What an audit device leaves out because it was told to: filters and exclusions of Vault Enterprise.",
    "Sessions that begin and end between two samples of a database, where its own log is not read.",
    "Hourly counts are of whole hours: an hour that the period cuts is counted as a whole.",
    "Attribution, ends and renewals are as they were known when the pack was made. Later data can make them more certain.",
]
