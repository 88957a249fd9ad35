"use strict";
// Draws the lanes of the data island on a canvas: thousands of boxes stay quick, and zooming needs no layout.
(() => {
  const data = JSON.parse(document.getElementById("timeline").textContent);
  const canvas = document.getElementById("lanes");
  const tip = document.getElementById("tip");
  const pen = canvas.getContext("2d");
  const LABEL = 62, SHARE = 58, HEAD = 34, GAP = 4, AXIS = 30, BAND = 0.2, BELOW = 0.09;
  const LOOKS = { F: "forward", B: "backward", I: "input", W: "weight" };
  const ranks = data.timelines[0].ranks.length;
  const LANE = Math.max(12, Math.min(26, Math.floor(560 / ranks)));
  const panelHeight = HEAD + ranks * (LANE + GAP);
  const height = data.timelines.length * panelHeight + AXIS;
  const span = Math.max(...data.timelines.map((timeline) => timeline.span_s));
  const view = { from: 0, to: span };
  let width = 0, colours = {}, hatch = null, chosen = null, pointer = null;

  const lanes = data.timelines.flatMap((timeline, panel) => timeline.ranks.map((rank, number) => ({
    panel, number, rank, timeline, path: new Set(rank.path),
    parsed: rank.actions.map((token) => /^(\d*)([A-Z]+)(\d*)$/.exec(token)), top: panel * panelHeight + HEAD + number * (LANE + GAP),
    busy: rank.actions.reduce((sum, token, i) => sum + (token.match(/[A-Z]+/)[0] in LOOKS ? rank.ends[i] - rank.starts[i] : 0), 0),
    stages: [...new Set(rank.actions.map((token) => parseInt(token, 10)))].filter(Number.isFinite).sort((a, b) => a - b),
  })));
  const plotted = () => width - LABEL - SHARE;
  const xOf = (seconds) => LABEL + (seconds - view.from) / (view.to - view.from) * plotted();
  const timeOf = (x) => view.from + (x - LABEL) / plotted() * (view.to - view.from);

  function time(seconds, digits = 3) {
    const size = Math.abs(seconds);
    const [factor, unit] = size >= 1 ? [1, "s"] : size >= 1e-3 ? [1e3, "ms"] : [1e6, "µs"];
    return size ? `${Number((seconds * factor).toPrecision(digits))} ${unit}` : "0 s";
  }
  function roundStep(wanted) { // the smallest of 1, 2, 5 times a power of ten that is not less
    const power = 10 ** Math.floor(Math.log10(wanted));
    return [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= wanted * (1 - 1e-9));
  }
  const percent = (share) => `${(share * 100).toFixed(1)}%`;

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["ink", "quiet", "lane", "edge", "forward", "on-forward", "backward", "on-backward",
      "input", "on-input", "weight", "on-weight", "optimizer", "hatch", "mark", "path", "faint", "card"]) colours[name] = style.getPropertyValue(`--${name}`).trim();
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const stroke = tile.getContext("2d");
    stroke.fillStyle = colours.optimizer;
    stroke.fillRect(0, 0, 8, 8);
    stroke.strokeStyle = colours.hatch;
    stroke.lineWidth = 2.6;
    for (const shift of [-8, 0, 8]) { stroke.beginPath(); stroke.moveTo(shift, 8); stroke.lineTo(shift + 8, 0); stroke.stroke(); }
    hatch = pen.createPattern(tile, "repeat");
  }

  function fit() {
    const ratio = window.devicePixelRatio || 1;
    width = Math.max(canvas.parentElement.clientWidth, 280);
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw();
  }

  function draw() {
    pen.clearRect(0, 0, width, height);
    pen.textBaseline = "middle";
    data.timelines.forEach((timeline, panel) => {
      const y = panel * panelHeight + HEAD - 14;
      const title = timeline.origin[0].toUpperCase() + timeline.origin.slice(1);
      word(title, 0, y, "ink", "left", "600 13px");
      const at = pen.measureText(title).width + 8;
      word(`step ${time(timeline.step_s)}`, at, y, "quiet", "left");
      word("busy", width, y, "quiet", "right");
    });
    lanes.forEach(drawLane);
    drawAxis();
    if (pointer && pointer.x > LABEL && pointer.x < width - SHARE) {
      pen.fillStyle = colours.mark;
      pen.fillRect(pointer.x, HEAD, 1, height - AXIS - HEAD);
    }
  }

  function word(text, x, y, colour, align, font = "12px") {
    pen.font = `${font} system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif`;
    pen.fillStyle = colours[colour];
    pen.textAlign = align;
    pen.fillText(text, x, y);
  }

  function drawLane(lane) {
    const { rank, top } = lane, middle = top + LANE / 2 + 0.5;
    const strong = chosen && chosen.lane === lane;
    word(`rank ${lane.number}`, 0, middle, "ink", "left", strong ? "700 12px" : "12px");
    word(percent(lane.busy / (rank.end_s - rank.begin_s)), width, middle, "ink", "right");
    pen.save();
    pen.beginPath();
    pen.rect(LABEL, 0, plotted(), height);
    pen.clip();
    pen.fillStyle = colours.lane;
    pen.fillRect(xOf(rank.begin_s), top, xOf(rank.end_s) - xOf(rank.begin_s), LANE);
    for (let i = 0; i < rank.actions.length; i++) {
      if (rank.ends[i] < view.from || rank.starts[i] > view.to) continue;
      const x = xOf(rank.starts[i]), wide = xOf(rank.ends[i]) - x;
      const shown = wide > 3 ? wide - 0.8 : Math.max(wide, 0.4);
      const [, stage, kind, microbatch] = lane.parsed[i];
      const look = LOOKS[kind];
      pen.fillStyle = look ? colours[look] : hatch;
      pen.fillRect(x, top, shown, LANE);
      const later = look ? lane.stages.indexOf(Number(stage)) : 0;
      if (later) { // a band tells the rank's later stages from its first, the thicker the later
        const high = LANE * BAND * later / (lane.stages.length - 1);
        pen.globalAlpha = 0.6;
        pen.fillStyle = colours[`on-${look}`];
        pen.fillRect(x, top + LANE * (1 - BELOW) - high, shown, high);
        pen.globalAlpha = 1;
      }
      if (lane.path.has(i)) { // the critical path: a dark line along the box's top edge
        pen.fillStyle = colours.path;
        pen.fillRect(x, top, Math.max(shown, 1), 3);
      }
      if (look && shown > 6.4 * microbatch.length + 3) word(microbatch, x + shown / 2, middle, `on-${look}`, "center", "11px");
      if (strong && chosen.box === i) {
        pen.strokeStyle = colours.mark;
        pen.lineWidth = 2.5;
        pen.strokeRect(x - 1, top - 1, Math.max(shown, 1) + 2, LANE + 2);
      }
    }
    pen.restore();
  }

  function drawAxis() {
    const y = height - AXIS + 2, step = roundStep((view.to - view.from) / Math.max(plotted() / 110, 1));
    pen.fillStyle = colours.edge;
    pen.fillRect(LABEL, y, plotted(), 1);
    for (let tick = Math.ceil(view.from / step - 1e-9); tick * step <= view.to * (1 + 1e-9); tick++) {
      const x = xOf(tick * step);
      pen.fillStyle = colours.edge;
      pen.fillRect(x, y, 1, 5);
      word(time(tick * step, 6), x, y + 16, "quiet", "center");
    }
  }

  // What is at a point: a box, or the idle span before one.
  function find(x, y) {
    const lane = lanes.find((one) => y >= one.top && y < one.top + LANE);
    const at = timeOf(x);
    if (!lane || x < LABEL || x > width - SHARE || at < lane.rank.begin_s || at > lane.rank.end_s) return null;
    const box = lane.rank.ends.findIndex((end) => end >= at);
    if (box < 0) return null;
    return { lane, box, idle: lane.rank.starts[box] > at };
  }

  function describe({ lane, box, idle }) {
    const { rank, timeline, number } = lane, token = rank.actions[box];
    const [, stage, kind, microbatch] = /^(\d*)([A-Z]+)(\d*)$/.exec(token);
    const names = { F: "forward", B: "backward", I: "input half of backward", W: "weight half of backward", NORM: "norm of the gradients", STEP: "update" };
    const start = rank.starts[box], length = rank.ends[box] - start;
    const lines = [];
    if (idle) lines.push(`idle before ${token} · rank ${number}, ${timeline.origin}`);
    else {
      lines.push(`${token} · rank ${number}, ${timeline.origin}`);
      lines.push(names[kind] + (stage ? ` of microbatch ${microbatch} on stage ${stage}` : ""));
      lines.push(`starts at ${time(start, 4)}, takes ${time(length)}`);
      const other = lanes.find((one) => one.number === number && one.panel !== lane.panel);
      if (other) {
        const theirs = other.rank.ends[box] - other.rank.starts[box];
        lines.push(`${other.timeline.origin} ${time(theirs)}`);
      }
    }
    const waited = rank.waits[box];
    if (waited) {
      const peer = waited[data.causes.length], theirs = waited[data.causes.length + 1];
      const parts = data.causes.map((cause, i) => waited[i] > 0 && (cause === "waiting" ? `${time(waited[i])} waiting for rank ${peer}${theirs ? ` (${theirs})` : ""}` : `${time(waited[i])} ${cause}`)).filter(Boolean);
      lines.push((idle ? "" : "before it: ") + parts.join(", "));
      const root = waited[data.causes.length + 2];
      if (root) lines.push(`which goes back to ${root}`);
    }
    if (!idle && lane.path.has(box)) lines.push("on the critical path");
    return lines.join("\n");
  }

  const inView = ({ lane, box }) => lane.rank.ends[box] >= view.from && lane.rank.starts[box] <= view.to;

  function show(found, x, y, seen = true) {
    chosen = found;
    tip.hidden = !found || !seen;
    if (found && seen) {
      tip.textContent = describe(found);
      tip.style.left = `${Math.max(0, Math.min(x + 14, width - tip.offsetWidth - 4))}px`;
      const below = y + 18 + tip.offsetHeight <= height;
      tip.style.top = `${below ? y + 18 : y - 14 - tip.offsetHeight}px`;
    }
    draw();
  }

  function look(from, to) {
    const length = Math.min(Math.max(to - from, span * 1e-4), span);
    view.from = Math.max(0, Math.min(from, span - length));
    view.to = view.from + length;
    if (chosen && !pointer) show(chosen, xOf(chosen.lane.rank.starts[chosen.box]), chosen.lane.top + LANE / 2, inView(chosen));
    else draw();
  }
  // By keys and buttons about the action that was chosen, where there is one to be seen.
  const middle = () => chosen && !pointer && inView(chosen) ? (chosen.lane.rank.starts[chosen.box] + chosen.lane.rank.ends[chosen.box]) / 2 : (view.from + view.to) / 2;
  const zoom = (factor, at = middle()) => look(at - (at - view.from) * factor, at + (view.to - at) * factor);
  const pan = (share) => look(view.from + share * (view.to - view.from), view.to + share * (view.to - view.from));
  const acts = { in: () => zoom(0.6), out: () => zoom(1 / 0.6), left: () => pan(-0.25), right: () => pan(0.25), all: () => look(0, span) };

  function walk(lanesOn, boxesOn) {
    const old = chosen || { lane: lanes[0], box: 0 };
    const start = old.lane.rank.starts[old.box];
    const lane = lanes[(lanes.indexOf(old.lane) + lanesOn + lanes.length) % lanes.length];
    let box = old.box + boxesOn;
    if (lanesOn) box = lane.rank.ends.findIndex((end) => end > start);
    box = Math.max(0, Math.min(lane.rank.actions.length - 1, box < 0 ? lane.rank.actions.length - 1 : box));
    const from = lane.rank.starts[box], to = lane.rank.ends[box], length = view.to - view.from;
    if (from < view.from || to > view.to) look((from + to - length) / 2, (from + to + length) / 2);
    show({ lane, box, idle: false }, xOf(from), lane.top + LANE / 2);
  }

  // Memory over time: a panel for each timeline, all on one scale; in it one line a rank, each of its own dash.
  const memory = document.getElementById("memory"), memoryTip = document.getElementById("memory-tip");
  const panels = data.timelines.map((timeline) => ({ timeline, lines: timeline.ranks.map((rank, number) => ({ number, moments: rank.memory[0], sizes: rank.memory[1] })).filter((line) => line.sizes) })).filter((panel) => panel.lines.length);
  const LEFT = 76, RIGHT = 16, TOP = 46, PLOT = 190, UNDER = 34;
  const unitOf = (value) => value >= 2 ** 30 ? [2 ** 30, "GiB"] : value >= 2 ** 20 ? [2 ** 20, "MiB"] : [2 ** 10, "KiB"];
  const bytes = (value) => {
    const [factor, unit] = unitOf(value);
    return `${Number((value / factor).toPrecision(3))} ${unit}`;
  };
  const most = panels.reduce((all, panel) => panel.lines.reduce((sum, line) => Math.max(sum, ...line.sizes), all), 1);
  const near = data.memory_limit <= 4 * most, ceiling = (near ? Math.max(most, data.memory_limit) : most) * 1.08;
  const memoryX = (seconds) => LEFT + seconds / span * (memory.clientWidth - LEFT - RIGHT);
  const memoryY = (at, value) => (at + 1) * (TOP + PLOT) - value / ceiling * PLOT;
  const DASHES = [[], [7, 3], [2, 3], [10, 3, 2, 3]];

  function drawMemory(marked) {
    if (!panels.length) return;
    const ratio = window.devicePixelRatio || 1, high = panels.length * (TOP + PLOT) + UNDER;
    const wide = Math.max(memory.parentElement.clientWidth, 280), ink = memory.getContext("2d");
    memory.width = Math.round(wide * ratio);
    memory.height = Math.round(high * ratio);
    memory.style.height = `${high}px`;
    ink.setTransform(ratio, 0, 0, ratio, 0, 0);
    ink.textBaseline = "middle";
    const font = (weight) => { ink.font = `${weight} 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif`; };
    const text = (words, x, y, colour, align = "left", weight = 400) => { font(weight); ink.fillStyle = colour; ink.textAlign = align; ink.fillText(words, x, y); };
    const level = (y, colour, dash) => { ink.strokeStyle = colour; ink.setLineDash(dash); ink.lineWidth = 1.5; ink.beginPath(); ink.moveTo(LEFT, y); ink.lineTo(wide - RIGHT, y); ink.stroke(); ink.setLineDash([]); };
    const shades = [colours.mark, colours.input, colours.ink, colours.quiet];
    panels.forEach(({ timeline, lines }, at) => {
      const title = timeline.origin[0].toUpperCase() + timeline.origin.slice(1);
      text(title, 0, memoryY(at, 0) - PLOT - 22, colours.ink, "left", 600);
      const after = ink.measureText(title).width + 8;
      text(lines.length === 1 ? "1 rank" : `${lines.length} ranks, a line each`, after, memoryY(at, 0) - PLOT - 22, colours.quiet);
      const size = unitOf(ceiling)[0], step = roundStep(ceiling / size / 5) * size;
      for (let value = 0; value <= ceiling; value += step) {
        level(memoryY(at, value), colours.faint, []);
        text(value ? bytes(value) : "0", LEFT - 8, memoryY(at, value), colours.quiet, "right");
      }
      if (near) {
        level(memoryY(at, data.memory_limit), colours.ink, [10, 4]);
        text(`limit ${bytes(data.memory_limit)}`, wide - RIGHT - 4, memoryY(at, data.memory_limit) - 9, colours.ink, "right", 600);
      } else text(`the limit, ${bytes(data.memory_limit)}, is ${(data.memory_limit / most).toFixed(1)} times the highest peak: far above this picture`, wide - RIGHT, memoryY(at, 0) - PLOT - 22, colours.quiet, "right");
      lines.forEach((line) => {
        ink.strokeStyle = shades[line.number % 4];
        ink.setLineDash(DASHES[Math.floor(line.number / 4 + line.number) % 4]);
        ink.lineWidth = marked && marked.line === line ? 3.2 : 1.7;
        ink.beginPath();
        line.moments.forEach((moment, i) => {
          if (i) ink.lineTo(memoryX(moment), memoryY(at, line.sizes[i - 1])); else ink.moveTo(memoryX(moment), memoryY(at, line.sizes[0]));
          ink.lineTo(memoryX(moment), memoryY(at, line.sizes[i]));
        });
        ink.lineTo(memoryX(timeline.ranks[line.number].end_s), memoryY(at, line.sizes[line.sizes.length - 1]));
        ink.stroke();
        ink.setLineDash([]);
      });
      if (lines.length <= 8) nameLines(at, lines, (words, x, y, number) => {
        font(600);
        ink.textAlign = "left";
        ink.strokeStyle = colours.card; // so that a name can be read on a line
        ink.lineWidth = 4;
        ink.lineJoin = "round";
        ink.strokeText(words, x, y);
        text(words, x, y, shades[number % 4], "left", 600);
      }, wide);
    });
    const every = roundStep(span / Math.max((wide - LEFT - RIGHT) / 110, 1));
    for (let moment = 0; moment <= span * (1 + 1e-9); moment += every) text(time(moment, 6), memoryX(moment), memoryY(panels.length - 1, 0) + 16, colours.quiet, "center");
  }

  function nameLines(at, lines, put, wide) { // each where its peak is, moved aside where a name stands already
    const taken = [];
    for (const { number, moments, sizes } of lines) {
      const peak = sizes.indexOf(Math.max(...sizes)), y = memoryY(at, sizes[peak]) - 8;
      let x = Math.min(memoryX(moments[peak]) + 4, wide - 60);
      while (taken.some(([a, b]) => Math.abs(a - x) < 52 && Math.abs(b - y) < 13) && x < wide - 60) x += 54;
      if (taken.some(([a, b]) => Math.abs(a - x) < 52 && Math.abs(b - y) < 13)) continue;
      taken.push([x, y]);
      put(`rank ${number}`, x, y, number);
    }
  }

  memory.addEventListener("pointermove", (event) => {
    const place = memory.getBoundingClientRect(), x = event.clientX - place.left, y = event.clientY - place.top;
    const at = Math.floor(y / (TOP + PLOT)), moment = (x - LEFT) / (memory.clientWidth - LEFT - RIGHT) * span;
    const near = panels[at] && moment >= 0 && moment <= span && panels[at].lines.map((line) => {
      let i = line.moments.findIndex((one) => one > moment);
      i = i < 0 ? line.moments.length - 1 : Math.max(i - 1, 0);
      return { line, size: line.sizes[i], far: Math.abs(memoryY(at, line.sizes[i]) - y) };
    }).sort((one, other) => one.far - other.far)[0];
    memoryTip.hidden = !near;
    if (near) {
      memoryTip.textContent = `rank ${near.line.number} holds ${bytes(near.size)}\nat ${time(moment)}, ${panels[at].timeline.origin}`;
      memoryTip.style.left = `${Math.max(0, Math.min(x + 14, memory.clientWidth - memoryTip.offsetWidth - 4))}px`;
      memoryTip.style.top = `${y + 16}px`;
    }
    drawMemory(near || null);
  });
  memory.addEventListener("pointerleave", () => { memoryTip.hidden = true; drawMemory(); });

  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = { "+": acts.in, "=": acts.in, "-": acts.out, ArrowLeft: acts.left, ArrowRight: acts.right, 0: acts.all,
      Home: () => pan(-1e9), End: () => pan(1e9), ArrowUp: () => walk(-1, 0), ArrowDown: () => walk(1, 0),
      ",": () => walk(0, -1), ".": () => walk(0, 1), Escape: () => show(null) };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  canvas.addEventListener("wheel", (event) => {
    const outermost = view.to - view.from >= span * 0.9999;
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      if (outermost) return;
      event.preventDefault();
      pan(event.deltaX / plotted());
    } else if (event.deltaY < 0 || !outermost) { // at the whole step, scrolling on belongs to the page
      event.preventDefault();
      zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY)) * 0.004), timeOf(event.clientX - canvas.getBoundingClientRect().left));
    }
  }, { passive: false });

  let grabbed = null;
  canvas.addEventListener("pointerdown", (event) => {
    grabbed = { x: event.clientX, from: view.from, to: view.to };
    canvas.setPointerCapture(event.pointerId);
    canvas.classList.add("held");
  });
  canvas.addEventListener("pointermove", (event) => {
    const place = canvas.getBoundingClientRect();
    pointer = { x: event.clientX - place.left, y: event.clientY - place.top };
    if (grabbed && Math.abs(event.clientX - grabbed.x) > 2) {
      const moved = (event.clientX - grabbed.x) / plotted() * (grabbed.to - grabbed.from);
      look(grabbed.from - moved, grabbed.to - moved);
    }
    show(find(pointer.x, pointer.y), pointer.x, pointer.y);
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { grabbed = null; canvas.classList.remove("held"); });
  canvas.addEventListener("pointerleave", () => { pointer = null; show(null); });
  for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => acts[button.dataset.do]());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); draw(); drawMemory(); });
  readColours();
  new ResizeObserver(() => { fit(); drawMemory(); }).observe(canvas.parentElement);
  if (panels.length) memory.closest("section").hidden = false;
  fit();
  drawMemory();
})();
