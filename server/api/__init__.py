"""The shapes of each API: request schemas, prompts made of them, and answers as the clients expect them."""
