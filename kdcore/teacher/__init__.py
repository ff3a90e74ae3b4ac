"""The teacher: its configuration, its training or import, its folder."""
