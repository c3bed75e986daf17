"""The conversation: messages, chat templates, tool calls, grammars, and where text and tokens drift apart."""
