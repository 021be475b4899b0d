() => {
  const crossed = [];
  for (const chart of document.querySelectorAll(".chart svg")) {
    const rules = [...chart.querySelectorAll(".rule")].map((rule) => rule.getBBox());
    const [left, right] = [rules[0].x, rules[0].x + rules[0].width];
    const heights = rules.map((rule) => rule.y);
    const drawn = { left, right, top: Math.min(...heights), bottom: Math.max(...heights) };
    const texts = [...chart.querySelectorAll("text")];
    const boxes = texts.map((text) => {
      const { x, y, width, height } = text.getBBox();
      return { left: x, right: x + width, top: y, bottom: y + height };
    });
    texts.forEach((text, i) => {
      const near = [drawn, ...boxes.slice(0, i)];
      if (boxes[i].left < 0 || near.some((box) => overlap(box, boxes[i]))) {
        crossed.push(text.textContent);
      }
    });
  }
  return crossed;

  function overlap(one, other) {
    return (
      one.left < other.right &&
      other.left < one.right &&
      one.top < other.bottom &&
      other.top < one.bottom
    );
  }
};
