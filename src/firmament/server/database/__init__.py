"""One SQLite file: schema, migrations, point reads in the loop and one writer thread."""
