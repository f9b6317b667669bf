"""``python -m noisyloss`` prints the table of all losses."""

from noisyloss._table import rows

COLUMNS = ["Id", "Class", "Bounds", "Symmetric, K", "Asymmetry ratio", "Defaults", "Paper"]

if __name__ == "__main__":
    lines = [COLUMNS, *([row[column] for column in COLUMNS] for row in rows())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
