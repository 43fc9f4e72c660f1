"""What is live and who could hold it: Vault, Kubernetes and database inventories, logins, pods, the ledger, revoking."""
