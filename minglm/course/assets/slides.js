const slides=[...document.querySelectorAll('.slide')];let now=Math.min(Math.max(+location.hash.slice(1)||1,1),slides.length)-1;
function show(n){now=Math.min(Math.max(n,0),slides.length-1);slides.forEach((s,i)=>s.classList.toggle('now',i===now));
document.getElementById('place').textContent=(now+1)+' / '+slides.length;history.replaceState(null,'','#'+(now+1));window.dispatchEvent(new Event('resize'));}
document.addEventListener('keydown',e=>{if(['ArrowRight','PageDown',' '].includes(e.key)){show(now+1);e.preventDefault()}
if(['ArrowLeft','PageUp'].includes(e.key)){show(now-1);e.preventDefault()} if(e.key==='Home')show(0);if(e.key==='End')show(slides.length-1)});
show(now);
