"use strict";

/* Columns sort at a press of their heads: upwards, downwards, and back to the order of the network. */
for (const table of document.querySelectorAll(".epruner-report table")) {
  const body = table.tBodies[0];
  const inOrder = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" };
      const order = next[head.ariaSort || "none"];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      let rows = inOrder;
      if (order !== "none") {
        head.ariaSort = order;
        const sign = order === "ascending" ? 1 : -1;
        rows = [...inOrder].sort((one, other) => {
          const [a, b] = [valueOf(one, column), valueOf(other, column)];
          const compared = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
          return sign * compared;
        });
      }
      body.append(...rows);
    });
  });
}

for (const pre of document.querySelectorAll(".epruner-report pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  const select = () => getSelection().selectAllChildren(pre);
  button.addEventListener("click", async () => {
    select(); // what remains where the clipboard is closed to pages from files
    await navigator.clipboard?.writeText(pre.textContent).then(
      () => { button.textContent = "Copied"; },
      () => { button.textContent = "Selected: press Ctrl+C"; },
    );
  });
  pre.after(button);
}
