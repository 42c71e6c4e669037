"""What a guard of a real model is worth on public sets."""
