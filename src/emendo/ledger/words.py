"""Records of a ledger in words."""

from __future__ import annotations

from emendo.ledger.record import Record


def what_happened(record: Record) -> str:
    """One line about an operation."""
    details = record.details
    facts = [f"{row['subject']} → {row['target']}" for row in details.get("requests", [])]
    told = ", ".join(facts[:2]) + (f" and {len(facts) - 2} more" if len(facts) > 2 else "")
    if record.operation == "init":
        return str(details["base"]["name"])
    if record.operation == "checkout":
        return (details["target"] or "base")[:12]
    if record.operation == "compact":
        return f"{details['bytes'][0]} bytes to {details['bytes'][1]}"
    gone = ", ".join(id[:12] for id in details.get("reverts", []))
    return "; ".join(filter(None, (told, f"without {gone}" if gone else "")))
