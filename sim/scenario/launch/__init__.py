"""Arguments of other tools' launches as a scenario: one file a format, `read` finds which"""
