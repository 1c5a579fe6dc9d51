// Influences of source classes, computed in the page by the formulas of dtl.estimate_influence (dtl/_estimators.py and
// dtl/_images.py; method "difference"). tests/book/test_pickers.py compares the two.

(() => {
  const sum = (x) => x.reduce((a, b) => a + b, 0);
  const mean = (x) => sum(x) / x.length;
  const squares = (x) => x.reduce((a, b) => a + b * b, 0);
  const dot = (x, y) => x.reduce((a, b, i) => a + b * y[i], 0);
  const variance = (x, lost = 0) => {
    const middle = mean(x);
    return squares(x.map((value) => value - middle)) / (x.length - lost);
  };
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  // The study of explorer-data.js: masks[model][class] 0 or 1, columns[image][model].
  function decoded(data) {
    const flat = bytes(data.masks);
    const K = data.sources.length;
    const masks = Array.from({ length: data.models }, (_, m) => Array.from(flat.subarray(m * K, (m + 1) * K)));
    const halves = new Uint16Array(bytes(data.margins).buffer);
    const values = new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
    const n = data.labels.length;
    const columns = data.labels.map((_, i) => masks.map((_, m) => values[m * n + i]));
    return { ...data, masks, columns };
  }

  // Difference in means of one output y[model], with the variance of each class's: design "random", Welch's.
  function welch(masks, K) {
    const m = masks.length;
    return {
      dof: m - 2,
      solve: (y) => {
        const found = { values: [], variances: [] };
        for (let c = 0; c < K; c++) {
          const [inside, outside] = [1, 0].map((side) => y.filter((_, i) => masks[i][c] === side));
          found.values.push(mean(inside) - mean(outside));
          found.variances.push(variance(inside, 1) / inside.length + variance(outside, 1) / outside.length);
        }
        return found;
      },
    };
  }

  // The same for a subset followed by its complement: every pair gives a difference D, and an estimate is the mean of
  // sign times D. In whole balanced blocks variances come from the regression of D on the signs.
  function pairs(masks, K, whole, block) {
    const m = masks.length;
    const n = m / 2;
    const signs = Array.from({ length: K }, (_, c) => Array.from({ length: n }, (_, p) => 2 * masks[2 * p][c] - 1));
    const sizes = Array.from({ length: n }, (_, p) => sum(signs.map((row) => row[p])));
    const uneven = sizes.some((size) => size !== 0);
    const left = n - (K - 1) - (uneven ? 1 : 0);
    const regress = whole && left >= 10;
    const eigenvalue = n + m / block;
    const solve = (y) => {
      const d = sizes.map((_, p) => y[2 * p] - y[2 * p + 1]);
      const products = signs.map((row) => dot(row, d));
      let variances;
      if (regress) {
        const level = dot(sizes, d);
        let fitted = squares(products.map((value) => value - level / K)) / eigenvalue;
        if (uneven) fitted += level ** 2 / squares(sizes);
        variances = products.map(() => Math.max(squares(d) - fitted, 0) / left / n);
      } else if (whole) {
        const both = d.map((_, p) => y[2 * p] + y[2 * p + 1]);
        variances = products.map(() => variance(both, 1) / n);
      } else {
        variances = products.map((value) => Math.max((squares(d) - value ** 2 / n) / ((n - 1) * n), 0));
      }
      return { values: products.map((value) => value / n), variances };
    };
    return { dof: regress ? left : n - 1, solve };
  }

  const reliability = (noise, spread, dof) => {
    const plain = Math.min(Math.max(1 - (spread > 0 ? noise / spread : 1), 0), 1);
    const few = 2 / dof;
    return plain + (few * (1 - plain) * plain) / (plain + few);
  };

  // question: -1 for the whole target, or the number of a target class; specific: beyond the whole target;
  // drawn: errors count the drawing of target images, of which there are `images` a class; leftOut: numbers of classes
  // that no model used here has seen. null where too few models are left.
  function compute(study, { models, images, question = -1, specific = false, drawn = true, leftOut = [] }) {
    const kept = [...study.sources.keys()].filter((c) => !leftOut.includes(c));
    const rows = [...Array(models).keys()].filter((m) => leftOut.every((c) => !study.masks[m][c]));
    const masks = rows.map((m) => kept.map((c) => study.masks[m][c]));
    const K = kept.length;
    const each = kept.map((_, i) => sum(masks.map((mask) => mask[i])));
    if (each.some((inside) => Math.min(inside, masks.length - inside) < 2)) return null;
    const whole = models % study.block === 0;
    const solver = leftOut.length ? welch(masks, K) : pairs(masks, K, whole, study.block);

    const numbers = study.targets.map((_, g) => study.labels.flatMap((label, i) => (label === g ? [i] : [])));
    const columns = numbers.map((of) => of.slice(0, images).map((i) => rows.map((m) => study.columns[i][m])));
    const means = columns.map((group) => rows.map((_, m) => mean(group.map((column) => column[m]))));
    const share = 1 / columns.length;
    const weights = columns.map((_, g) => (question < 0 ? share : (g === question) - (specific ? share : 0)));

    const { values, variances } = solver.solve(rows.map((_, m) => dot(weights, means.map((y) => y[m]))));
    const spread = variance(values);
    let noise = mean(variances);
    let dof = values.map(() => solver.dof);
    if (drawn) {
      const drawing = values.map(() => 0);
      const uncertain = values.map(() => 0);
      const middling = values.map((value) => value - mean(values));
      const ahead = middling.map((value) => value / Math.sqrt(squares(middling) || 1));
      let across = 0;
      columns.forEach((_, g) => {
        if (weights[g] === 0) return;
        const n = columns[g].length;
        const middle = solver.solve(means[g]);
        const single = columns[g].map(solver.solve);
        const apart = single.map((of) => of.values.map((value, c) => value - middle.values[c]));
        let excess = 0;
        let forward = sum(apart.map((of) => dot(ahead, of) ** 2)) / (n - 1);
        values.forEach((_, c) => {
          const scatter = sum(apart.map((of) => of[c] ** 2)) / (n - 1);
          const noise = mean(single.map((of) => of.variances[c])) - middle.variances[c];
          const own = (Math.max(noise, 0) * n) / (n - 1);
          drawing[c] += (weights[g] ** 2 * Math.max(scatter - own, 0)) / n;
          uncertain[c] += (weights[g] ** 4 * (scatter / n) ** 2) / (n - 1);
          forward -= own * ahead[c] ** 2;
          excess += scatter - own;
        });
        across += (weights[g] ** 2 * Math.max(excess - Math.max(forward, 0), 0)) / (n * K);
      });
      noise += across;
      dof = values.map(
        (_, c) => (variances[c] + drawing[c]) ** 2 / (variances[c] ** 2 / solver.dof + uncertain[c]),
      );
      drawing.forEach((more, c) => (variances[c] += more));
    }
    const stderr = variances.map(Math.sqrt);
    const reach = stderr.map((error, c) => error * window.jStat.studentt.inv(0.975, dof[c]));
    const low = values.map((value, c) => value - reach[c]);
    const high = values.map((value, c) => value + reach[c]);
    return { kept, values, stderr, dof, low, high, reliability: reliability(noise, spread, K - 1), models: rows.length };
  }

  const make = (name, attributes = {}, ...children) => {
    const svg = ["svg", "line", "circle", "text", "g"].includes(name);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    element.append(...children);
    return element;
  };

  // Rows of a dot and its interval, in the order of the whole study, so that the eye can follow a class.
  function drawing(study, found, order) {
    const [left, width, row, top] = [118, 390, 19, 8];
    const shown = order.filter((c) => found.kept.includes(c));
    const bottom = top + shown.length * row;
    const height = bottom + 40;
    const far = Math.max(...found.low.concat(found.high).map(Math.abs));
    const x = (value) => left + 8 + ((value / far + 1) / 2) * (width - left - 16);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    svg.append(make("line", { x1: x(0), x2: x(0), y1: top, y2: bottom, class: "zero" }));
    shown.forEach((c, place) => {
      const i = found.kept.indexOf(c);
      const y = top + place * row + row / 2;
      const side = found.low[i] > 0 ? "helps" : found.high[i] < 0 ? "hurts" : "open";
      svg.append(
        make("text", { x: left, y: y + 4, "text-anchor": "end" }, study.sources[c]),
        make("line", { x1: x(found.low[i]), x2: x(found.high[i]), y1: y, y2: y, class: side }),
        make("circle", { cx: x(found.values[i]), cy: y, r: 4, class: side }),
      );
    });
    const power = 10 ** Math.floor(Math.log10(far));
    const step = power * [5, 2, 1].find((times) => times * power <= far);
    for (const value of [-step, 0, step]) {
      const label = value.toPrecision(1).replace("-", "\u2212");
      svg.append(make("text", { x: x(value), y: bottom + 16, "text-anchor": "middle" }, label));
    }
    svg.append(make("text", { x: x(0), y: bottom + 34, "text-anchor": "middle" }, "influence on the mean margin"));
    const best = found.values.indexOf(Math.max(...found.values));
    const worst = found.values.indexOf(Math.min(...found.values));
    const [helps, hurts] = [best, worst].map((i) => study.sources[found.kept[i]]);
    svg.setAttribute(
      "aria-label",
      `Influences of ${shown.length} source classes with 95% intervals, from ${helps}, which helps most, ` +
        `to ${hurts}, which hurts most.`,
    );
    return svg;
  }

  function start(place, study) {
    const option = (value, text) => make("option", { value }, text);
    const question = make("select", {}, option(-1, "all of CIFAR-10"));
    question.append(...study.targets.map((name, g) => option(g, name)));
    const part = make("select", {}, option(0, "the whole influence"), option(1, "beyond that on all of CIFAR-10"));
    const errors = make("select", {}, option(1, "for new images"), option(0, "for these images"));
    const models = make("input", { type: "range", min: 8, max: study.models, step: 2, value: study.models });
    const images = make("input", { type: "range", min: 5, max: study.images, step: 5, value: study.images });
    const numbers = [make("output", {}), make("output", {})];
    const boxes = study.sources.map((_, value) => make("input", { type: "checkbox", value }));
    const summary = make("summary", {});
    const picture = make("div", { class: "explorer-picture" });
    const said = make("p", { "aria-live": "polite" });

    const settings = () => ({
      models: Number(models.value),
      images: Number(images.value),
      question: Number(question.value),
      specific: question.value >= 0 && part.value === "1",
      drawn: errors.value === "1",
      leftOut: boxes.flatMap((box, c) => (box.checked ? [c] : [])),
    });
    const whole = compute(study, { models: study.models, images: study.images });
    const order = [...study.sources.keys()].sort((a, b) => whole.values[b] - whole.values[a]);
    const show = () => {
      const chosen = settings();
      part.disabled = chosen.question < 0;
      [chosen.models, chosen.images].forEach((n, i) => (numbers[i].value = n));
      const names = chosen.leftOut.map((c) => study.sources[c]);
      summary.textContent = `Only models that have not seen: ${names.join(", ") || "(any)"}`;
      const found = compute(study, chosen);
      place.found = found;
      if (!found) {
        picture.replaceChildren();
        said.textContent = "Too few models are left: leave out fewer classes, or take more models.";
        return;
      }
      const sure = found.values.filter((_, i) => found.low[i] > 0 || found.high[i] < 0).length;
      picture.replaceChildren(drawing(study, found, order));
      said.textContent =
        `${found.models} models: reliability ${found.reliability.toFixed(2)}. The intervals of ` +
        `${sure} of ${found.kept.length} classes leave out zero.`;
    };
    const labelled = (text, ...controls) => make("label", {}, make("span", {}, text), ...controls);
    place.replaceChildren(
      make(
        "div",
        { class: "explorer-controls" },
        labelled("Influence on", question),
        labelled("Part", part),
        labelled("Errors", errors),
        labelled("Models", models, numbers[0]),
        labelled("Target images a class", images, numbers[1]),
        make(
          "details",
          {},
          summary,
          make("div", {}, ...boxes.map((box, c) => make("label", {}, box, study.sources[c]))),
        ),
      ),
      picture,
      said,
    );
    place.addEventListener("input", show);
    show();
    Object.assign(place, { study, compute: (chosen) => compute(study, chosen) });
    place.dataset.ready = "true";
  }

  const load = (source) =>
    new Promise((resolve, reject) => {
      const script = make("script", { src: source });
      script.addEventListener("load", resolve);
      script.addEventListener("error", reject);
      document.head.append(script);
    });

  // What the picker needs is read when a reader comes near it.
  const near = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        Promise.all(target.dataset.scripts.split(" ").map(load)).then(() =>
          start(target, decoded(window.dtlExplorerData)),
        );
      }
    },
    { rootMargin: "600px" },
  );
  document.querySelectorAll(".explorer").forEach((place) => near.observe(place));
})();
