"""A release: precisions, export, certificate, gate, registry, ledger, card."""
