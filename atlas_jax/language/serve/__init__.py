"""The server: completions, chats and responses over HTTP as clients speak it, a page, a terminal."""
