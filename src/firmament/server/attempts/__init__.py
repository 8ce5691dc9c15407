"""One device x one release x one try, as the server sees it."""
