//! x
use moe_dispatch::cpu::Local;
use moe_dispatch::router::*;
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::time::Instant;
use v3_numerics::bf16;
#[target_feature(enable = "avx512f,avx512bw")]
fn read_multi(a: &[u8], streams: usize, pf: usize) -> i64 {
    unsafe {
        let mut s = [_mm512_setzero_si512(); 8];
        let part = (a.len() / streams) & !4095;
        let p = a.as_ptr();
        for i in (0..part).step_by(256) {
            for st in 0..streams {
                let q = p.add(st * part + i);
                if pf > 0 {
                    for j in 0..4 {
                        _mm_prefetch::<_MM_HINT_T0>(q.wrapping_add(pf + 64 * j).cast());
                    }
                }
                for j in 0..4 {
                    s[j] = _mm512_add_epi64(s[j], _mm512_loadu_si512(q.add(64 * j).cast()));
                }
            }
        }
        let mut t = s[0];
        for j in 1..8 {
            t = _mm512_add_epi64(t, s[j]);
        }
        _mm512_reduce_add_epi64(t)
    }
}
#[target_feature(enable = "avx512f,avx512bw")]
fn nt_fill(a: &mut [u8]) {
    unsafe {
        let z = _mm512_set1_epi8(3);
        let o = a.as_ptr().align_offset(64);
        let n = (a.len() - o) / 64;
        let p = a.as_mut_ptr().add(o);
        for i in 0..n {
            _mm512_stream_si512(p.add(i * 64).cast(), z);
        }
        _mm_sfence();
    }
}
fn med(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}
fn main() {
    let th: usize = std::env::args().nth(1).map_or(1, |x| x.parse().unwrap());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(th).build().unwrap();
    pool.install(||{
 let (t,d,k)=(4096usize,7168usize,8usize);
 let cfg=RouterConfig::deepseek_v3();
 let logits: Vec<f32>=(0..t*256).map(|i| ((i as u64).wrapping_mul(0x9e3779b97f4a7c15)>>40) as f32/(1u32<<24) as f32*4.0-2.0).collect();
 let r=route(&cfg,&logits,&[]).unwrap();
 let local=Local::new(&r,256).unwrap();
 let x: Vec<bf16>=(0..t*d).map(|i|bf16::from_f32((i%977) as f32*0.01)).collect();
 let mut rows=vec![bf16::ZERO;t*k*d]; rows.fill(bf16::ONE);
 let mut y=vec![bf16::ONE;t*d]; let mut yf=vec![1f32;t*d];
 local.permute(&x,d,&mut rows).unwrap();
 let big=vec![1u8;t*k*d*2]; let mut fill=vec![1u8;t*k*d*2];
 let mut v: Vec<Vec<f64>>=vec![vec![];8];
 for _ in 0..9 {
  let p=big.len()/th;
  let s=Instant::now(); big.par_chunks(p).for_each(|c| {std::hint::black_box(unsafe{read_multi(c,1,0)});}); v[0].push(s.elapsed().as_secs_f64());
  let s=Instant::now(); big.par_chunks(p).for_each(|c| {std::hint::black_box(unsafe{read_multi(c,8,1024)});}); v[1].push(s.elapsed().as_secs_f64());
  let s=Instant::now(); fill.par_chunks_mut(p).for_each(|c| unsafe{nt_fill(c)}); v[2].push(s.elapsed().as_secs_f64());
  let s=Instant::now(); local.permute(&x,d,&mut rows).unwrap(); v[3].push(s.elapsed().as_secs_f64());
  let s=Instant::now(); local.combine(&rows,d,true,&mut y).unwrap(); v[4].push(s.elapsed().as_secs_f64());
  let s=Instant::now(); local.combine(&rows,d,true,&mut yf).unwrap(); v[5].push(s.elapsed().as_secs_f64());
  let s=Instant::now(); std::hint::black_box(route(&cfg,&logits,&[]).unwrap()); v[6].push(s.elapsed().as_secs_f64());
 }
 let b=(t*k*d*2) as f64*1e-9;
 let m: Vec<f64>=v.into_iter().map(|v|if v.is_empty(){0.}else{med(v)}).collect();
 println!("threads {th}: read {:.2} read8 {:.2} fill {:.2} | permute delivered {:.2} ({:.2} of fill) | combine in+out {:.2} ({:.2} of read8; rows read only {:.2}) f32 out {:.2} | route {:.3} ms",b/m[0],b/m[1],b/m[2],b/m[3],m[2]/m[3],b*9./8./m[4],m[1]/m[4]*9./8.,m[1]/m[4],b*10./8./m[5],m[6]*1e3);
 });
}
