// Tables of class `sortable`: a button in each heading sorts, a field filters. Without scripts they stay plain tables.
document.addEventListener('DOMContentLoaded', () => document.querySelectorAll('table.sortable').forEach((table, n) => {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  const text = (row, i) => row.cells[i].textContent.trim();
  const number = s => { const m = s.replace(/,/g, '').match(/^[-+×\s]*\d*\.?\d+(e[-+]?\d+)?/i); return m ? parseFloat(m[0].replace(/[+×\s]/g, '')) : NaN; };
  heads.forEach((th, i) => {
    const button = document.createElement('button');
    button.type = 'button'; button.textContent = th.textContent; th.textContent = ''; th.append(button);
    const there = rows.map(r => text(r, i)).filter(s => !/^(–|not run|diverged|other classes)?$/.test(s));  // a column of few numbers is still one of numbers
    const numeric = there.filter(s => !isNaN(number(s))).length > there.length / 2;
    button.addEventListener('click', () => {
      const down = th.getAttribute('aria-sort') ? th.getAttribute('aria-sort') === 'ascending' : numeric;  // numbers start with the largest
      heads.forEach(h => h.removeAttribute('aria-sort'));
      th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const key = r => numeric ? number(text(r, i)) : text(r, i).toLowerCase();
      const order = (a, b) => {
        const x = key(a), y = key(b);
        if (numeric && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y);  // what is missing comes last
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      };
      rows.sort(order).forEach(r => body.append(r));
    });
  });
  if (rows.length < 9) return;
  const label = document.createElement('label'), input = document.createElement('input'), count = document.createElement('span');
  input.type = 'search'; input.id = `filter${n}`; label.htmlFor = input.id; label.textContent = 'Filter rows';
  count.setAttribute('role', 'status');
  const box = document.createElement('div'); box.className = 'filter'; box.append(label, input, count);
  table.closest('.table-box').before(box);
  input.addEventListener('input', () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach(r => { const hit = words.every(w => r.textContent.toLowerCase().includes(w)); r.hidden = !hit; shown += hit; });
    count.textContent = `${shown} of ${rows.length} rows`;
  });
}));
