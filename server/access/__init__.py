"""Who may do what: clients and their limits, the key store, the table of scopes, the audit log."""
