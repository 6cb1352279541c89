"""How an operator runs fast on a platform. Only `attnconv.functional` imports from here."""
