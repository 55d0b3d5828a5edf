"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const shown = new Map();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (value) => (value == null ? "" : String(Number(value.toPrecision(4))));

  // Phases begin at the dashed lines.
  function marks(chart) {
    return (plot) => {
      const context = plot.ctx;
      context.save();
      context.strokeStyle = colour("--soft");
      context.setLineDash([4, 4]);
      for (const mark of chart.marks) {
        const x = Math.round(plot.valToPos(mark.step, "x", true));
        if (x < plot.bbox.left || x > plot.bbox.left + plot.bbox.width) continue;
        context.beginPath();
        context.moveTo(x, plot.bbox.top);
        context.lineTo(x, plot.bbox.top + plot.bbox.height);
        context.stroke();
      }
      context.restore();
    };
  }

  function draw(box, chart) {
    const width = Math.max(240, box.clientWidth);
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const options = {
      width, height: 220,
      cursor: { drag: { x: true, y: false }, focus: { prox: 24 } },
      legend: { live: true },
      scales: { x: { time: false } },
      hooks: { draw: [marks(chart)] },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map((tick) => tick >= 10000 ? tick / 1000 + "k" : tick) },
        { ...axis, size: 62, values: (_, ticks) => ticks.map(short) },
      ],
      series: [{ label: "step" }].concat(chart.series.map((one, place) => ({
        label: one.label,
        stroke: colour("--c" + (place % 12)),
        width: 2,
        dash: place >= 12 || (place % 2 && chart.series.length < 3) ? [8, 4] : undefined,
        spanGaps: true,
        points: { show: one.dots, size: 5 },
        value: (_, value) => short(value),
      }))),
    };
    box.textContent = "";
    shown.set(box, { chart, plot: new uPlot(options, [chart.steps].concat(chart.series.map((one) => one.values)), box) });
  }

  function drawIn(root) {
    for (const section of root.querySelectorAll("[data-charts]")) {
      if (section.closest("details:not([open])")) continue;
      const boxes = section.querySelectorAll(".chart");
      data[section.dataset.charts].forEach((chart, place) => {
        if (!shown.has(boxes[place])) draw(boxes[place], chart);
      });
    }
  }

  // The charts of a closed part are drawn when it is opened: a page may hold hundreds.
  for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", () => drawIn(part));
  drawIn(document);

  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      for (const [box, { plot }] of shown) plot.setSize({ width: Math.max(240, box.clientWidth), height: 220 });
    }, 120);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const [box, { chart, plot }] of [...shown]) { plot.destroy(); draw(box, chart); }
  });
  // On paper all is open.
  addEventListener("beforeprint", () => { for (const run of document.querySelectorAll("details.run")) run.open = true; drawIn(document); });

  function follow() {
    const part = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (part && part.tagName === "DETAILS") { part.open = true; part.scrollIntoView(); }
  }
  addEventListener("hashchange", follow);
  follow();

  // A click on the head of a column sorts by it, a second click the other way.
  function valueIn(row, place) {
    const cell = row.cells[place];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text);
    return { text, number, isNumber: text !== "" && !Number.isNaN(number) };
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => ({ row, value: valueIn(row, place) }));
      rows.sort((a, b) => {
        if ((a.value.text === "") !== (b.value.text === "")) return a.value.text === "" ? 1 : -1;
        const order = a.value.isNumber && b.value.isNumber ? a.value.number - b.value.number : a.value.text.localeCompare(b.value.text);
        return down ? -order : order;
      });
      for (const { row } of rows) table.tBodies[0].append(row);
    }));
  }
})();
