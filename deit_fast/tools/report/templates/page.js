"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const charts = read("charts"), classes = read("classes"), cells = read("cells");
  const make = (tag, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };
  const percent = (share) => `${Math.round(100 * share)} %`;

  // Values under the pointer, or at the step that the arrow keys choose.
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const chart = charts[figure.dataset.chart], svg = figure.querySelector("svg");
    const cursor = svg.querySelector(".cursor"), where = figure.querySelector(".where");
    const values = [...figure.querySelectorAll("[data-series]")];
    const steps = [...new Set(chart.series.flatMap((one) => one.points.map((point) => point[0])))].sort((a, b) => a - b);
    const across = (step) => chart.across[0] + chart.across[1] * step;
    let at = -1;
    const show = (index) => {
      at = Math.max(0, Math.min(steps.length - 1, index));
      const step = steps[at];
      cursor.removeAttribute("hidden");
      cursor.setAttribute("x1", across(step));
      cursor.setAttribute("x2", across(step));
      chart.series.forEach((one, number) => {
        const near = one.points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
        values[number].textContent = near[1];
      });
      where.textContent = `at step ${step.toLocaleString("en")}`;
    };
    const leave = () => { show(steps.length - 1); cursor.setAttribute("hidden", ""); };
    svg.addEventListener("pointermove", (event) => {
      const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
      show(steps.reduce((best, step, index) => (Math.abs(across(step) - place) < Math.abs(across(steps[best]) - place) ? index : best), 0));
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const far = Math.max(1, Math.round(steps.length / 10)), now = at < 0 ? steps.length - 1 : at;
      const to = { ArrowLeft: now - 1, ArrowRight: now + 1, PageUp: now - far, PageDown: now + far, Home: 0, End: steps.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
  }

  // The images behind a count.
  const panel = document.getElementById("cell"), table = document.querySelector("[data-cells]");
  if (table) {
    const buttons = [...table.querySelectorAll("button")];
    const known = new Map(cells.map((cell) => [`${cell.true} ${cell.taken}`, cell]));
    buttons.forEach((button, index) => { button.tabIndex = index ? -1 : 0; });
    if (classes.some((name) => name.length > 4)) table.parentElement.classList.add("long");
    const open = (button) => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      const [number, taken] = [Number(button.dataset.true), Number(button.dataset.taken)];
      const cell = known.get(`${number} ${taken}`), same = number === taken;
      const title = make("p", {}, make("strong", {}, make("bdi", { textContent: classes[number] })),
        ...(same ? [" recognised"] : [" taken for ", make("strong", {}, make("bdi", { textContent: classes[taken] }))]));
      const shown = cell.images.length, more = shown < cell.count ? `, the ${shown} of which it is surest` : "";
      title.append(`: ${cell.count} ${cell.count === 1 ? "image" : "images"}${shown ? more : ", listed by --json"}`);
      const list = make("ul", { className: "thumbs" });
      for (const image of cell.images) {
        const item = make("li");
        if (image.src) item.append(make("img", { src: image.src, alt: `${percent(image.probability)} sure`, className: image.src.startsWith("data:image/png") ? "tiny" : "" }));
        item.append(percent(image.probability), make("br"), make("bdi", { textContent: image.file }));
        list.append(item);
      }
      panel.replaceChildren(title, list);
      if (matchMedia("(max-width: 760px)").matches) panel.scrollIntoView({ block: "nearest" });
    };
    table.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) open(button);
    });
    table.addEventListener("keydown", (event) => {
      const button = event.target.closest("button");
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!button || !move) return;
      event.preventDefault();
      const place = (one) => [one.closest("tr").rowIndex, one.closest("td").cellIndex], [row, column] = place(button);
      const reached = buttons.filter((one) => {
        const [r, c] = place(one);
        return move[0] ? c === column && Math.sign(r - row) === move[0] : r === row && Math.sign(c - column) === move[1];
      });
      const next = reached.sort((a, b) => {
        const far = (one) => Math.abs(place(one)[0] - row) + Math.abs(place(one)[1] - column);
        return far(a) - far(b);
      })[0];
      if (!next) return;
      button.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }

  // Tables that sort by a column.
  for (const sorted of document.querySelectorAll("[data-sort]")) {
    const heads = [...sorted.tHead.rows[0].cells], body = sorted.tBodies[0];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => { const text = row.cells[column].textContent, number = parseFloat(text); return column && !Number.isNaN(number) ? number : column ? -1 : text; };
      const rows = [...body.rows].sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
      body.append(...(up ? rows : rows.reverse()));
    }));
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling;
      try { await navigator.clipboard.writeText(text.textContent); button.textContent = "Copied"; } catch {
        getSelection().selectAllChildren(text);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
  addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details:not(.values)")) one.open = true; });
})();
