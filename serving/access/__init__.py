"""Who may do what: API keys and OIDC tokens, roles, rates, and the page's sign-in."""
