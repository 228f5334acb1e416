"""What this server understands, told to programs: the table, and the document made of it."""
