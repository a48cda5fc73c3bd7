"""Names that travel between the services: PBML stores them, QWEN hands them on."""

DOCUMENT_ID = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}$"
CONVERSATION_ID = r"^[A-Za-z0-9][A-Za-z0-9._:@+-]{0,126}$"
PIN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
WATERMARK = r"^(pg:[0-9]{1,18}|spool:[A-Za-z0-9._-]{1,63}:[0-9a-f]{32})$"
