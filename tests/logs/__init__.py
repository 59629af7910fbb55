"""The log beside those who really read it: logrotate and journald."""
