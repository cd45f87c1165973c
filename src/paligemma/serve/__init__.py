"""The server: an API that clients have, a page, and one thread that computes for all of them."""
